"""Unknown query parameters are refused by name: a misspelt filter must not seem to work."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi import Request
from fastapi.dependencies.models import Dependant

from gateway.access.permissions import is_public
from gateway.http.problems import unknown_fields


async def known_parameters(request: Request) -> None:
    """Raise Problem for a query parameter that the operation does not have.

    Public endpoints accept any: probes and caches add their own.
    """
    if not request.query_params or is_public(request.scope["route"]):
        return
    known = _known(request, request.scope["route"].path, request.method)
    if unknown := sorted(set(request.query_params) - known):
        raise unknown_fields("parameter", unknown, known)


def _known(request: Request, path: str, method: str) -> frozenset[str]:
    """Return the parameters of an operation: declared by its functions, or described in `openapi_extra`.

    Not taken from the OpenAPI document: generating it blocks the event loop for a second.
    """
    known: dict[tuple[str, str], frozenset[str]] = request.app.state.parameters
    if (method, path) not in known:
        route = request.scope["route"]
        declared = set(_declared(route.dependant))
        described = (route.openapi_extra or {}).get("parameters", ())
        known[method, path] = frozenset(declared | {found["name"] for found in described if found["in"] == "query"})
    return known[method, path]


def _declared(dependant: Dependant) -> Iterator[str]:
    yield from (field.alias for field in dependant.query_params)
    for inner in dependant.dependencies:
        yield from _declared(inner)
