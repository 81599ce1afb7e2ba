"""Security in the OpenAPI document: the credentials that are accepted, and the scope of each operation."""

from __future__ import annotations

from typing import Any

from gateway.access.identity import Identity
from gateway.access.permissions import Permissions

_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A JWT of a trusted issuer, an API key (`dk_…`), or the admin token.",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key (`dk_…`)."},
}
_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace", "query"})


def secure(document: dict[str, Any], permissions: Permissions, *, anonymous: Identity | None = None) -> dict[str, Any]:
    """Add to every operation the scope it requires; return the document.

    OpenAPI 3.1 allows scopes in a requirement of any scheme. A gateway with anonymous access adds an empty requirement,
    which the document in docs/ does not have.
    """
    document.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for path, item in document.get("paths", {}).items():
        for method, operation in item.items():
            if method in _METHODS:
                scope = permissions.get((method.upper(), path))
                if scope is None:
                    operation["security"] = []
                    continue
                required: list[dict[str, list[str]]] = [{name: [scope.value]} for name in _SCHEMES]
                if anonymous is not None and scope in anonymous.scopes:
                    required.append({})
                operation["security"] = required
    return document
