"""The security of the API's document: what may be sent, and which scope each operation asks for."""

from __future__ import annotations

from typing import Any

from gateway.access.identity import Identity
from gateway.access.permissions import Permissions

_SCHEMES = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "bearerFormat": "JWT",
        "description": "A JWT of an issuer this system trusts, an API key (`dk_…`), or the operators' token.",
    },
    "apiKey": {"type": "apiKey", "in": "header", "name": "X-API-Key", "description": "An API key (`dk_…`)."},
}
_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace", "query"})


def secure(document: dict[str, Any], permissions: Permissions, *, anonymous: Identity | None = None) -> dict[str, Any]:
    """Add to every operation the scope it requires; return the document.

    OpenAPI 3.1 lets a requirement name scopes whatever the scheme. A gateway that is open to its own machine takes
    requests without credentials too: the document it serves says so, the one in docs/ does not.
    """
    document.setdefault("components", {})["securitySchemes"] = _SCHEMES
    for path, item in document.get("paths", {}).items():
        for method, operation in item.items():
            if method in _METHODS:
                scope = permissions.get((method.upper(), path))
                if scope is None:
                    operation["security"] = []
                    continue
                asked: list[dict[str, list[str]]] = [{name: [scope.value]} for name in _SCHEMES]
                if anonymous is not None and scope in anonymous.scopes:
                    asked.append({})
                operation["security"] = asked
    return document
