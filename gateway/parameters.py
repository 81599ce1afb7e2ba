"""Query parameters that nobody reads are refused by name: a misspelt filter must not look like one that was obeyed."""

from __future__ import annotations

from fastapi import Request

from gateway.permissions import PERMISSIONS, PUBLIC
from gateway.problems import Problem
from schemas.http_api import ProblemCode, ProblemItem

_SHOWN = 20  # unknown parameters a refusal names
_LENGTH = 100  # characters of a name that are said back


async def known_parameters(request: Request) -> None:
    """Refuse a query parameter that the API's document does not have for this operation. Raises Problem.

    Not where everybody may ask: probes and caches add what they like.
    """
    if not request.query_params:
        return
    path, method = request.scope["route"].path, request.method
    if PERMISSIONS.get((method, path), PUBLIC) is PUBLIC:
        return
    known = _documented(request, path, method)
    unknown = sorted(set(request.query_params) - known)[:_SHOWN]
    if unknown:
        detail = f"not one of: {', '.join(sorted(known))}" if known else "this takes no parameters"
        raise Problem(
            ProblemCode.UNKNOWN_FIELD,
            f"`{unknown[0][:_LENGTH]}` is {detail}.",
            tuple(ProblemItem(field=name[:_LENGTH], detail=detail) for name in unknown),
        )


def _documented(request: Request, path: str, method: str) -> set[str]:
    operation = request.app.openapi()["paths"].get(path, {}).get(method.lower(), {})
    return {found["name"] for found in operation.get("parameters", ()) if found.get("in") == "query"}
