"""The guard at the door: every request is identified, and let in only with the scope its endpoint asks for."""

from __future__ import annotations

from typing import Annotated, Protocol

import structlog
from fastapi import Depends, Request

from gateway.access import auth_errors
from gateway.access.identity import ANONYMOUS, NOBODY, Identity, Scope
from gateway.access.permissions import permission_of, undeclared
from schemas.values import Owner

log = structlog.get_logger(__name__)
_SAFE = frozenset({"GET", "HEAD"})


class Authenticator(Protocol):
    """Whoever knows callers by what they send along."""

    async def identify(self, request: Request) -> Identity:
        """Return the caller. Raises Problem (401) for missing or invalid credentials, and DependencyUnavailable."""


class AnonymousAuthenticator:
    """Accepts every request as anonymous: for apps that only their own machine can reach, such as tests."""

    anonymous = ANONYMOUS

    async def identify(self, request: Request) -> Identity:
        """See Authenticator."""
        return ANONYMOUS


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
        return NOBODY
    authenticator: Authenticator = request.app.state.authenticator
    identity = await authenticator.identify(request)
    if scope not in identity.scopes:
        if identity.name == ANONYMOUS.name:
            raise auth_errors.noted(request, auth_errors.missing(), "missing")
        raise auth_errors.noted(request, auth_errors.insufficient(scope), "insufficient-scope", by=identity.name)
    if scope is Scope.ADMIN and request.method not in _SAFE:
        log.info(
            "an operator acts",
            method=request.method,
            path=request.url.path[:300],
            by=identity.name,
            owner=identity.owner,
        )
    return identity


Who = Annotated[Identity, Depends(identified)]
"""Who asks."""


async def owner_of(identity: Who) -> Owner:
    """Return whose images a request may see. A plain function would be called in a thread."""
    return identity.owner


Caller = Annotated[Owner, Depends(owner_of)]
"""Whose request it is."""
