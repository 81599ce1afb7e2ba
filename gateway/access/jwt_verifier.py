"""JWTs as bearer tokens (RFC 7519), checked as RFC 8725 says.

A key is for one algorithm. The token's header only names the key, by its `kid`; nothing else in it is followed: no
key it brings along (`jwk`, `x5c`), no address it names (`jku`, `x5u`), and its `alg` must be the key's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
_OF_KIND = {("RSA", None): Algorithm.RS256, ("OKP", "Ed25519"): Algorithm.EDDSA}  # a set never publishes a secret

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the one algorithm it is for."""

    algorithm: Algorithm
    value: Any


class Tokens:
    """Knows whoever brings a token signed by one of our keys."""

    def __init__(self, settings: AuthSettings) -> None:
        """Raises ValueError for a key that cannot be used, naming it."""
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
        return Identity(Owner(owner), _scopes(claims), f"token:{subject}")


def published_keys(settings: AuthSettings, url: str) -> TtlCache[Key]:
    """Return the keys at a URL, fetched when they are needed."""

    async def read() -> dict[str, Key]:
        return await _fetched(url, settings.jwks_timeout_s)

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
    """Return those scopes a token carries that are ours: `scope` as OAuth writes it (RFC 9068), or a list."""
    text, listed = claims.get("scope", ""), claims.get("scopes", [])
    named = [*(text.split() if isinstance(text, str) else ()), *(listed if isinstance(listed, list) else ())]
    return frozenset(scope for scope in Scope if scope.value in named)


def _read_key(given: TokenKey) -> Key:
    try:
        text = given.file.read_text() if given.file is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"the key of kid {given.kid} cannot be read from {given.file}: {error}") from None
    if given.key is not None:
        text = given.key.get_secret_value()
    try:
        value = get_default_algorithms()[given.algorithm].prepare_key(text.strip())
    except (jwt.PyJWTError, ValueError, TypeError):
        raise ValueError(f"the key of kid {given.kid} is none for {given.algorithm}") from None
    return _sound(Key(given.algorithm, value), given.kid)


def _sound(key: Key, kid: str) -> Key:
    """Return the key, or raise ValueError if it is weak, or not of its algorithm's kind."""
    if key.algorithm is Algorithm.HS256 and len(key.value) < MIN_SECRET_BYTES:
        raise ValueError(f"the secret of kid {kid} has less than {MIN_SECRET_BYTES} bytes")
    kind = {Algorithm.RS256: RSAPublicKey, Algorithm.EDDSA: Ed25519PublicKey}.get(key.algorithm)
    if kind is not None and not isinstance(key.value, kind):
        raise ValueError(f"the key of kid {kid} must be a public key for {key.algorithm}")
    if isinstance(key.value, RSAPublicKey) and key.value.key_size < MIN_RSA_BITS:
        raise ValueError(f"the key of kid {kid} has less than {MIN_RSA_BITS} bits")
    return key


class _Jwk(BaseModel):
    """What is looked at in a published key before it is read (RFC 7517)."""

    model_config = ConfigDict(extra="allow")

    kid: str
    kty: str
    crv: str | None = None
    alg: str | None = None
    use: str | None = None


class _JwkSet(BaseModel):
    """A JWK set."""

    keys: list[dict[str, Any]]


async def _fetched(url: str, timeout_s: float) -> dict[str, Key]:
    """Return the usable keys of a JWK set by kid. Raises DependencyUnavailable."""
    try:
        here = is_loopback(httpx.URL(url).host)  # and then never through a proxy
        async with (
            httpx.AsyncClient(timeout=timeout_s, trust_env=not here) as client,
            client.stream("GET", url) as answer,
        ):
            answer.raise_for_status()
            body = bytearray()
            async for chunk in answer.aiter_bytes():
                body += chunk
                if len(body) > MAX_JWKS_BYTES:
                    raise DependencyUnavailable(f"the JWK set has more than {MAX_JWKS_BYTES} bytes")
        given = _JwkSet.model_validate_json(bytes(body)).keys
    except (httpx.HTTPError, ValidationError) as error:
        raise DependencyUnavailable(f"the JWK set cannot be read: {type(error).__name__}") from error
    found: dict[str, Key] = {}
    for jwk in given:
        try:
            shown = _Jwk.model_validate(jwk)
            found.setdefault(shown.kid, _published_key(shown, jwk))
        except (ValueError, TypeError, jwt.PyJWTError) as error:
            log.warning("a published key is left out", kid=str(jwk.get("kid"))[:80], error=type(error).__name__)
    return found


def _published_key(shown: _Jwk, jwk: dict[str, Any]) -> Key:
    algorithm = _OF_KIND.get((shown.kty, shown.crv))
    if algorithm is None or shown.alg not in (None, algorithm.value) or shown.use not in (None, "sig"):
        raise ValueError("not a key for tokens of ours")
    return _sound(Key(algorithm, get_default_algorithms()[algorithm].from_jwk(jwk)), shown.kid)
