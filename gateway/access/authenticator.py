"""Who may: by JWT, by API key, by the operators' token; and, on a gateway only this machine can reach, anybody here.

Open is a gateway that listens on a loopback address, when nobody has set up anything to tell callers apart. It then
answers programs of this machine, not pages of other sites in its browsers. What is sent along is checked even so.
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
"""Whoever has the token of DARKROOM_GATEWAY__ADMIN_TOKEN: makes keys for others, and sees nobody's images."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """The Authenticator of every gateway process."""

    keys: KnownKeys
    tokens: Tokens | None = None  # None: no JWT is taken
    admin_token: str | None = None
    anonymous: Identity | None = None  # whoever sends nothing; None: is refused

    async def identify(self, request: Request) -> Identity:
        """See gateway.access.dependencies.Authenticator."""
        given = _credentials(request)
        if given is None:
            return self._nobody(request)
        try:
            identity = await self._known(given)
        except (auth_errors.TokenRefused, KeyRefused) as error:
            raise auth_errors.noted(request, auth_errors.invalid(expired=error.expired), str(error)) from None
        AUTHENTICATIONS.labels("accepted").inc()
        return identity

    async def _known(self, given: str) -> Identity:
        if self.admin_token is not None and hmac.compare_digest(given.encode(), self.admin_token.encode()):
            return OPERATOR
        if given.startswith(PREFIX):
            return await self.keys.identify(given)
        if self.tokens is None:
            raise auth_errors.TokenRefused
        return await self.tokens.identify(given)

    def _nobody(self, request: Request) -> Identity:
        if self.anonymous is None:
            raise auth_errors.noted(request, auth_errors.missing(), "missing")
        if is_foreign(request):
            raise auth_errors.noted(request, auth_errors.foreign(), "foreign")
        AUTHENTICATIONS.labels("anonymous").inc()
        return self.anonymous


async def open_authenticator(own: GatewaySettings, auth: AuthSettings, files: FileStore) -> Door:
    """Return the door of a gateway, and say in the log whom it lets in. Raises NotReady, and DependencyUnavailable.

    Nobody may start a gateway that others can reach without a way to tell callers apart.
    """
    stored = ApiKeys(files)
    try:
        tokens = _open_tokens(auth) if auth.reads_tokens else None
    except ValueError as error:
        raise NotReady(f"DARKROOM_AUTH__KEYS: {error}") from error
    try:
        any_key = await bounded(stored.any(), own.storage_timeout_s)
    except TimeoutError as error:
        raise DependencyUnavailable("the object store did not say in time whether there are API keys") from error
    is_open = is_loopback(own.host) and not (auth.required or tokens or any_key)
    ways = [name for name, there in (("JWT", tokens), ("API key", any_key), ("admin token", own.admin_token)) if there]
    if not is_open and not ways:
        where = f"Others can reach {own.host}" if not is_loopback(own.host) else "DARKROOM_AUTH__REQUIRED is set"
        raise NotReady(
            f"{where}, and there is nothing to tell callers by: make an API key (`darkroom keys create`), or set "
            "DARKROOM_AUTH__KEYS, DARKROOM_AUTH__JWKS_URL or DARKROOM_GATEWAY__ADMIN_TOKEN; or listen on 127.0.0.1"
        )
    _announce(own, ways, is_open=is_open)
    return Door(
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
    """Return what anybody of this machine may: everything, unless the operators have a token of their own."""
    kept = {Scope.ADMIN} if own.admin_token is not None else set()
    return Identity(ANONYMOUS.owner, ANONYMOUS.scopes - kept, ANONYMOUS.name)


def _announce(own: GatewaySettings, ways: list[str], *, is_open: bool) -> None:
    if is_open:
        log.warning(
            "the gateway is open: every program of this machine may use it without credentials; "
            "DARKROOM_AUTH__REQUIRED closes it",
            host=own.host,
            admin="with its token only" if own.admin_token else "open too",
        )
    else:
        log.info("the gateway asks for credentials", host=own.host, taken=ways)


def _credentials(request: Request) -> str | None:
    """Return the credentials of a request, None if it has none. Raises Problem."""
    headers = request.headers
    given = [*headers.getlist("authorization"), *headers.getlist("x-api-key")]
    if len(given) > 1:
        raise auth_errors.noted(request, auth_errors.ambiguous(), "ambiguous")
    if not given:
        return None
    if "x-api-key" in headers:
        return given[0].strip() if given[0].strip().startswith(PREFIX) else ""
    scheme, _, token = given[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
