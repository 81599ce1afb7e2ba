"""The rows of docs/permissions.md: every endpoint of the embedded app with the scope its route declares."""

from __future__ import annotations

from collections.abc import Iterator

from fastapi.routing import iter_route_contexts

from darkroom.generate.openapi import documented_app
from gateway.access.permissions import permissions_of

COLUMNS = ("Method", "Path", "Scope", "Summary")


def permission_rows() -> Iterator[tuple[str, str, str, str]]:
    """Yield method, path, scope and summary of every endpoint, sorted by path. Raises UndeclaredRoute."""
    app = documented_app()
    summaries = {
        (method, str(context.path)): context.summary
        for context in iter_route_contexts(app.routes)
        for method in context.methods or ()
    }
    permissions = permissions_of(app)
    for method, path in sorted(permissions, key=lambda row: (row[1], row[0])):
        scope = permissions[method, path]
        yield method, f"`{path}`", "public" if scope is None else f"`{scope}`", summaries[method, path] or ""
