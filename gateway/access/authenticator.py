"""The authenticator of the gateways: JWTs, API keys, the admin token, or anonymous access on a loopback address.

A gateway is open (anonymous access) if it listens on a loopback address and no credentials are configured. It then
answers programs of this machine, but not pages of other sites in its browsers. Credentials that are sent are checked
all the same.
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass
from typing import TYPE_CHECKING

import structlog
from fastapi import Request

from gateway.access import auth_errors
from gateway.access.api_keys import PREFIX, ApiKeys, KeyRefused, KnownKeys
from gateway.access.identity import ANONYMOUS, Identity, Scope
from gateway.access.loopback import is_foreign, is_loopback
from gateway.access.settings import AuthSettings
from gateway.settings import GatewaySettings
from schemas.values import DEFAULT_OWNER
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable, NotReady
from streams.object_store.protocol import FileStore
from streams.telemetry.metrics import AUTHENTICATIONS

if TYPE_CHECKING:
    from gateway.access.jwt_verifier import Tokens

log = structlog.get_logger(__name__)

OPERATOR = Identity(DEFAULT_OWNER, frozenset({Scope.ADMIN}), "admin-token")
"""The identity of DARKROOM_GATEWAY__ADMIN_TOKEN: may manage the system, and read no images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CredentialAuthenticator:
    """The Authenticator of every gateway process."""

    keys: KnownKeys
    tokens: Tokens | None = None  # None: JWTs are rejected
    admin_token: str | None = None
    anonymous: Identity | None = None  # of requests without credentials; None: they are rejected

    async def identify(self, request: Request) -> Identity:
        """See gateway.access.dependencies.Authenticator."""
        given = _credentials(request)
        if given is None:
            return self._without_credentials(request)
        try:
            identity = await self._by_credentials(given)
        except (auth_errors.TokenRefused, KeyRefused) as error:
            raise auth_errors.recorded(request, auth_errors.invalid(expired=error.expired), str(error)) from None
        AUTHENTICATIONS.labels("accepted").inc()
        return identity

    async def _by_credentials(self, given: str) -> Identity:
        if self.admin_token is not None and hmac.compare_digest(given.encode(), self.admin_token.encode()):
            return OPERATOR
        if given.startswith(PREFIX):
            return await self.keys.identify(given)
        if self.tokens is None:
            raise auth_errors.TokenRefused
        return await self.tokens.identify(given)

    def _without_credentials(self, request: Request) -> Identity:
        if self.anonymous is None:
            raise auth_errors.recorded(request, auth_errors.missing(), "missing")
        if is_foreign(request):
            raise auth_errors.recorded(request, auth_errors.foreign(), "foreign")
        AUTHENTICATIONS.labels("anonymous").inc()
        return self.anonymous


async def open_authenticator(own: GatewaySettings, auth: AuthSettings, files: FileStore) -> CredentialAuthenticator:
    """Return the authenticator of a gateway and log what it accepts. Raises NotReady and DependencyUnavailable.

    A gateway that other machines can reach does not start without configured credentials.
    """
    stored = ApiKeys(files)
    try:
        tokens = _open_tokens(auth) if auth.reads_tokens else None
    except ValueError as error:
        raise NotReady(f"DARKROOM_AUTH__KEYS: {error}") from error
    try:
        any_key = await bounded(stored.any(), own.storage_timeout_s)
    except TimeoutError as error:
        raise DependencyUnavailable("the object store did not list the API keys in time") from error
    is_open = is_loopback(own.host) and not (auth.required or tokens or any_key)
    ways = [name for name, there in (("JWT", tokens), ("API key", any_key), ("admin token", own.admin_token)) if there]
    if not is_open and not ways:
        where = (
            f"{own.host} is not a loopback address" if not is_loopback(own.host) else "DARKROOM_AUTH__REQUIRED is set"
        )
        raise NotReady(
            f"{where}, and no credentials are configured: create an API key (`darkroom keys create`), or set "
            "DARKROOM_AUTH__KEYS, DARKROOM_AUTH__JWKS_URL or DARKROOM_GATEWAY__ADMIN_TOKEN; or listen on 127.0.0.1"
        )
    _announce(own, ways, is_open=is_open)
    return CredentialAuthenticator(
        keys=KnownKeys(stored, fresh_s=auth.key_fresh_s, timeout_s=own.storage_timeout_s),
        tokens=tokens,
        admin_token=own.admin_token.get_secret_value() if own.admin_token else None,
        anonymous=_anonymous(own) if is_open else None,
    )


def _open_tokens(auth: AuthSettings) -> Tokens:
    # A gateway that accepts no JWT does not load PyJWT and cryptography.
    from gateway.access.jwt_verifier import Tokens  # noqa: PLC0415

    return Tokens(auth)


def _anonymous(own: GatewaySettings) -> Identity:
    """Return the anonymous identity: every scope, without `admin` if an admin token is set."""
    withheld = {Scope.ADMIN} if own.admin_token is not None else set()
    return Identity(ANONYMOUS.owner, ANONYMOUS.scopes - withheld, ANONYMOUS.name)


def _announce(own: GatewaySettings, ways: list[str], *, is_open: bool) -> None:
    if is_open:
        log.warning(
            "the gateway is open to this machine without credentials; DARKROOM_AUTH__REQUIRED closes it",
            host=own.host,
            admin="with its token only" if own.admin_token else "open too",
        )
    else:
        log.info("the gateway requires credentials", host=own.host, taken=ways)


def _credentials(request: Request) -> str | None:
    """Return the credentials of a request, None if it has none. Raises Problem."""
    headers = request.headers
    given = [*headers.getlist("authorization"), *headers.getlist("x-api-key")]
    if len(given) > 1:
        raise auth_errors.recorded(request, auth_errors.ambiguous(), "ambiguous")
    if not given:
        return None
    if "x-api-key" in headers:
        return given[0].strip() if given[0].strip().startswith(PREFIX) else ""
    scheme, _, token = given[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
