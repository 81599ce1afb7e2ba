"""Permissions of endpoints: each route declares the scope it requires, or that it is public; others deny everyone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fastapi import FastAPI, Request, params
from fastapi.routing import APIRoute, iter_route_contexts
from starlette.routing import BaseRoute, Mount
from starlette.staticfiles import StaticFiles

from gateway.access.identity import Scope
from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode

Permissions = Mapping[tuple[str, str], Scope | None]
"""Method and path template -> the scope the endpoint requires; None: it is public."""


class UndeclaredRoute(Exception):
    """A route of an app declares no permission, or more than one."""


@dataclass(frozen=True, slots=True)
class Permission:
    """What a route requires of its caller. `gateway.access.dependencies.identified` enforces it."""

    scope: Scope | None  # None: public, requests need no credentials

    async def __call__(self, request: Request) -> None:
        """Raise Problem (403) in an app whose requests `identified` does not check."""
        if not getattr(request.state, "permission_checked", False):
            raise undeclared()


def requires(scope: Scope) -> params.Depends:
    """Return the declaration of a route that requires a scope, for its `dependencies`."""
    return params.Depends(Permission(scope))


def public() -> params.Depends:
    """Return the declaration of a route that needs no credentials, for its `dependencies`."""
    return params.Depends(Permission(None))


def permission_of(route: BaseRoute) -> Permission | None:
    """Return what a route declares; None for no declaration, or more than one."""
    dependencies = route.dependencies if isinstance(route, APIRoute) else ()
    found = [each.dependency for each in dependencies if isinstance(each.dependency, Permission)]
    return found[0] if len(found) == 1 else None


def is_public(route: BaseRoute) -> bool:
    """Return whether a route is declared public."""
    permission = permission_of(route)
    return permission is not None and permission.scope is None


def permissions_of(app: FastAPI) -> Permissions:
    """Return the permission of every endpoint of an app, in the order of its routes. Raises UndeclaredRoute.

    Mounted static files are public and not in it.
    """
    found: dict[tuple[str, str], Scope | None] = {}
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, Mount) and isinstance(route.app, StaticFiles):
            continue
        permission, methods = permission_of(route), sorted(context.methods or ())
        if permission is None:
            raise UndeclaredRoute(f"{' '.join(methods)} {context.path} needs one of requires(scope) and public()")
        found |= {(method, str(context.path)): permission.scope for method in methods}
    return found


def undeclared() -> Problem:
    """Return the refusal of every request to a route without a permission."""
    return Problem(ProblemCode.FORBIDDEN, "This address is not open to requests.")
