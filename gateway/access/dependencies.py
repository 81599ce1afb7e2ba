"""FastAPI dependencies of every route: the caller's identity, with the scope that the route requires."""

from __future__ import annotations

from typing import Annotated, Protocol

import structlog
from fastapi import Depends, Request

from gateway.access import auth_errors
from gateway.access.identity import ANONYMOUS, UNIDENTIFIED, Identity, Scope
from gateway.access.permissions import permission_of, undeclared
from gateway.access.refusal_pacing import RefusalPacing
from gateway.http.load_shedding import uncounted
from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode
from schemas.values import Owner
from streams.errors import DependencyUnavailable

log = structlog.get_logger(__name__)
_SAFE = frozenset({"GET", "HEAD"})


class Authenticator(Protocol):
    """Identifies callers by the credentials of their requests."""

    async def identify(self, request: Request) -> Identity:
        """Return the caller. Raises Problem (401) for missing or invalid credentials, and DependencyUnavailable."""


class AnonymousAuthenticator:
    """Accepts every request as anonymous: for apps without a socket, as in tests."""

    anonymous = ANONYMOUS

    async def identify(self, request: Request) -> Identity:
        """See Authenticator."""
        return ANONYMOUS


async def _identity(request: Request) -> Identity:
    """Return the caller. While credentials are checked or refused, the request holds no place of the reads."""
    authenticator: Authenticator = request.app.state.authenticator
    with uncounted(request.scope):
        try:
            return await authenticator.identify(request)
        except Problem as problem:
            if problem.code is ProblemCode.UNAUTHORIZED:
                pacing: RefusalPacing = request.app.state.refusal_pacing
                await pacing.wait()
            raise


async def identified(request: Request) -> Identity:
    """Return the caller, if they have the scope that the route declares. Raises Problem (401, 403).

    Runs before the body is read. A route that declares nothing answers 403.
    """
    permission = permission_of(request.scope["route"])
    if permission is None:
        log.error("the route declares no permission", method=request.method, route=request.scope["route"].path)
        raise undeclared()
    request.state.permission_checked = True
    scope = permission.scope
    if scope is None:
        return UNIDENTIFIED
    identity = await _identity(request)
    if scope not in identity.scopes:
        if identity.name == ANONYMOUS.name:
            raise auth_errors.recorded(request, auth_errors.missing(), "missing")
        raise auth_errors.recorded(request, auth_errors.insufficient(scope), "insufficient-scope", by=identity.name)
    if scope is Scope.ADMIN and request.method not in _SAFE:
        log.info(
            "operator request",
            method=request.method,
            path=request.url.path[:300],
            by=identity.name,
            owner=identity.owner,
        )
    return identity


Who = Annotated[Identity, Depends(identified)]
"""The caller's identity."""


async def owner_of(identity: Who) -> Owner:
    """Return the owner whose images a request may see. A plain function would run in a thread."""
    return identity.owner


async def is_operator(request: Request) -> bool:
    """Return whether the caller of a public route has the scope `admin`. No credentials are no error."""
    authenticator: Authenticator = request.app.state.authenticator
    sent = "authorization" in request.headers or "x-api-key" in request.headers
    if not sent and getattr(authenticator, "anonymous", None) is None:
        return False
    try:
        return (await _identity(request)).is_operator
    except (Problem, DependencyUnavailable, TimeoutError):
        return False


Caller = Annotated[Owner, Depends(owner_of)]
"""The caller's owner."""
