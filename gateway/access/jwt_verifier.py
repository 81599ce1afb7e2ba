"""JWTs as bearer tokens (RFC 7519), verified as RFC 8725 requires.

A key has one algorithm. Of a token's header only `kid` selects the key, and `alg` must be the key's algorithm; keys
and addresses in the header (`jwk`, `x5c`, `jku`, `x5u`) are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import httpx
import jwt
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import get_default_algorithms
from pydantic import BaseModel, ConfigDict, ValidationError

from gateway.access.auth_errors import TokenRefused
from gateway.access.identity import Identity, Scope
from gateway.access.loopback import is_loopback
from gateway.access.settings import Algorithm, AuthSettings, TokenKey
from gateway.access.ttl_cache import TtlCache
from schemas.values import OWNER_PATTERN, Owner
from streams.errors import DependencyUnavailable

MAX_TOKEN = 8192  # characters
MAX_JWKS_BYTES = 1 << 18
MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2048
_OF_KIND = {("RSA", None): Algorithm.RS256, ("OKP", "Ed25519"): Algorithm.EDDSA}  # a JWK set contains public keys only

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """A key and its algorithm."""

    algorithm: Algorithm
    value: Any


class Tokens:
    """Identifies callers by tokens signed with a configured or published key."""

    def __init__(self, settings: AuthSettings) -> None:
        """Raises ValueError for an unusable key, with its kid."""
        self._settings = settings
        self._keys = {key.kid: _read_key(key) for key in settings.keys}
        self._published = published_keys(settings, settings.jwks_url) if settings.jwks_url else None

    async def identify(self, token: str) -> Identity:
        """Return the token's identity. Raises TokenRefused, or DependencyUnavailable if its key cannot be fetched."""
        key = await self._find(_kid(token))
        if key is None:
            raise TokenRefused
        try:
            claims = jwt.decode(
                token,
                key.value,
                algorithms=[key.algorithm],
                issuer=self._settings.issuer,
                audience=self._settings.audience,
                leeway=self._settings.leeway_s,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise TokenRefused(expired=True) from None
        except (jwt.PyJWTError, ValueError, OverflowError, TypeError, RecursionError):
            raise TokenRefused from None
        return self._identity(claims)

    async def _find(self, kid: str) -> Key | None:
        if kid in self._keys or self._published is None:
            return self._keys.get(kid)
        return await self._published.find(kid)

    def _identity(self, claims: Mapping[str, Any]) -> Identity:
        owner = claims.get(self._settings.owner_claim)
        if not isinstance(owner, str) or not re.fullmatch(OWNER_PATTERN, owner):
            raise TokenRefused
        subject = str(claims.get("sub", owner))[:128]
        return Identity(Owner(owner), _scopes(claims), f"token:{subject}", expires_at=_expiry(claims))


def published_keys(settings: AuthSettings, url: str) -> TtlCache[Key]:
    """Return the cached keys of a JWK set, fetched on first use."""

    async def read() -> dict[str, Key]:
        return await _fetch(url, settings.jwks_timeout_s)

    return TtlCache(
        "the JWK set",
        read,
        fresh_s=settings.jwks_fresh_s,
        apart_s=settings.jwks_apart_s,
        stale_s=settings.jwks_stale_s,
        timeout_s=settings.jwks_timeout_s,
    )


def _kid(token: str) -> str:
    if len(token) > MAX_TOKEN:
        raise TokenRefused
    try:
        kid = jwt.get_unverified_header(token).get("kid")
    except (jwt.PyJWTError, ValueError, RecursionError):
        raise TokenRefused from None
    if not isinstance(kid, str):
        raise TokenRefused
    return kid


def _scopes(claims: Mapping[str, Any]) -> frozenset[Scope]:
    """Return the known scopes of a token: `scope` separated by spaces (RFC 9068), or the list `scopes`."""
    text, listed = claims.get("scope", ""), claims.get("scopes", [])
    named = [*(text.split() if isinstance(text, str) else ()), *(listed if isinstance(listed, list) else ())]
    return frozenset(scope for scope in Scope if scope.value in named)


def _expiry(claims: Mapping[str, Any]) -> datetime:
    """Return a verified token's `exp`; the latest time there is for one beyond it."""
    try:
        return datetime.fromtimestamp(int(claims["exp"]), UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.max.replace(tzinfo=UTC)


def _read_key(setting: TokenKey) -> Key:
    try:
        text = setting.file.read_text() if setting.file is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the key of kid {setting.kid} cannot be read from {setting.file}: {error}") from None
    if setting.key is not None:
        text = setting.key.get_secret_value()
    try:
        value = get_default_algorithms()[setting.algorithm].prepare_key(text.strip())
    except (jwt.PyJWTError, ValueError, TypeError):
        raise ValueError(f"the key of kid {setting.kid} is not a key for {setting.algorithm}") from None
    return _checked(Key(setting.algorithm, value), setting.kid)


def _checked(key: Key, kid: str) -> Key:
    """Return the key. Raises ValueError if it is too short, or of another type than its algorithm needs."""
    if key.algorithm is Algorithm.HS256 and len(key.value) < MIN_SECRET_BYTES:
        raise ValueError(f"the secret of kid {kid} has fewer than {MIN_SECRET_BYTES} bytes")
    kind = {Algorithm.RS256: RSAPublicKey, Algorithm.EDDSA: Ed25519PublicKey}.get(key.algorithm)
    if kind is not None and not isinstance(key.value, kind):
        raise ValueError(f"the key of kid {kid} must be a public key for {key.algorithm}")
    if isinstance(key.value, RSAPublicKey) and key.value.key_size < MIN_RSA_BITS:
        raise ValueError(f"the key of kid {kid} has fewer than {MIN_RSA_BITS} bits")
    return key


class _Jwk(BaseModel):
    """The fields of a published key that are checked before it is loaded (RFC 7517)."""

    model_config = ConfigDict(extra="allow")

    kid: str
    kty: str
    crv: str | None = None
    alg: str | None = None
    use: str | None = None


class _JwkSet(BaseModel):
    """A JWK set."""

    keys: list[dict[str, Any]]


async def _fetch(url: str, timeout_s: float) -> dict[str, Key]:
    """Return the usable keys of a JWK set by kid. Raises DependencyUnavailable."""
    try:
        local = is_loopback(httpx.URL(url).host)  # never through a proxy
        async with (
            httpx.AsyncClient(timeout=timeout_s, trust_env=not local) as client,
            client.stream("GET", url) as answer,
        ):
            answer.raise_for_status()
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_JWKS_BYTES:
                    raise DependencyUnavailable(f"the JWK set has more than {MAX_JWKS_BYTES} bytes")
        published = _JwkSet.model_validate_json(bytes(body)).keys
    except (httpx.HTTPError, ValidationError) as error:
        raise DependencyUnavailable(f"the JWK set cannot be read: {type(error).__name__}") from error
    found: dict[str, Key] = {}
    for jwk in published:
        try:
            header = _Jwk.model_validate(jwk)
            found.setdefault(header.kid, _published_key(header, jwk))
        except (ValueError, TypeError, jwt.PyJWTError) as error:
            log.warning("published key ignored", kid=str(jwk.get("kid"))[:80], error=type(error).__name__)
    return found


def _published_key(header: _Jwk, jwk: dict[str, Any]) -> Key:
    algorithm = _OF_KIND.get((header.kty, header.crv))
    if algorithm is None or header.alg not in (None, algorithm.value) or header.use not in (None, "sig"):
        raise ValueError("unsupported key type, algorithm or use")
    return _checked(Key(algorithm, get_default_algorithms()[algorithm].from_jwk(jwk)), header.kid)
