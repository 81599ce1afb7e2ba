"""The guard at the door: every request is identified, and let in only with the scope its endpoint asks for."""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import Depends, Request

from gateway.identity import ANONYMOUS, Identity
from gateway.permissions import PERMISSIONS
from gateway.problems import Problem
from schemas.http_api import ProblemCode
from schemas.values import Owner


class Authenticator(Protocol):
    """Whoever knows callers by what they send along."""

    async def identify(self, request: Request) -> Identity:
        """Return who asks. Raises Problem (401) for credentials that are missing or wrong, and DependencyAway."""


class Everybody:
    """Knows nobody, and trusts everybody: for a gateway that only this machine can reach."""

    async def identify(self, request: Request) -> Identity:
        """See Authenticator."""
        return ANONYMOUS


async def identified(request: Request) -> Identity:
    """Return who asks, if they may. Runs before anything of the body is read. Raises Problem (401, 403)."""
    row = (request.method, request.scope["route"].path)
    if row not in PERMISSIONS:
        raise RuntimeError(f"{row[0]} {row[1]} has no row in gateway.permissions")
    scope = PERMISSIONS[row]
    if scope is None:
        return ANONYMOUS
    authenticator: Authenticator = request.app.state.authenticator
    identity = await authenticator.identify(request)
    if scope not in identity.scopes:
        raise Problem(
            ProblemCode.FORBIDDEN,
            f"This needs the scope `{scope}`.",
            headers={"WWW-Authenticate": f'Bearer realm="darkroom", error="insufficient_scope", scope="{scope}"'},
        )
    return identity


Who = Annotated[Identity, Depends(identified)]
"""Who asks."""


def owner_of(identity: Who) -> Owner:
    """Return whose images a request may see."""
    return identity.owner


Caller = Annotated[Owner, Depends(owner_of)]
"""Whose request it is."""
