"""Methods of every resource: HEAD for each GET, OPTIONS, and 405 with all allowed methods.

FastAPI looks at one route at a time: its 405 has only the methods of the first matching route, and it matches a fixed
path (`/images/batch`) as an id of the pattern beside it when only the pattern has the method.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from fastapi import FastAPI, Request, Response
from fastapi.routing import iter_route_contexts
from starlette.requests import ClientDisconnect
from starlette.routing import Mount, compile_path
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.problems import Problem, respond
from schemas.http.problems import ProblemCode


@dataclass(slots=True)
class Resources:
    """The methods of each resource of an app. Built at the first request, when every route is registered."""

    fixed: dict[str, set[str]] = field(default_factory=dict)
    patterns: dict[str, tuple[re.Pattern[str], set[str]]] = field(default_factory=dict)

    @classmethod
    def of(cls, app: FastAPI) -> Resources:
        """Return the resources of an app."""
        found = cls()
        for context in iter_route_contexts(app.routes):
            if isinstance(context.original_route, Mount):
                continue
            path, methods = str(context.path), set(context.methods or ())
            if "{" in path:
                found.patterns.setdefault(path, (compile_path(path)[0], set()))[1].update(methods)
            else:
                found.fixed.setdefault(path, set()).update(methods)
        return found

    def methods(self, path: str) -> set[str] | None:
        """Return the methods of the resource at a path, None without one. Fixed paths take precedence."""
        if path in self.fixed:
            return self.fixed[path]
        return next((methods for pattern, methods in self.patterns.values() if pattern.match(path)), None)


class Methods:
    """ASGI middleware around an app's routes."""

    def __init__(self, app: ASGIApp, *, whole: FastAPI) -> None:
        self._app = app
        self._whole = whole
        self._resources: Resources | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._resources is None:
            self._resources = Resources.of(self._whole)
        methods, method = self._resources.methods(scope["path"]), scope["method"]
        if methods is None or method in methods:
            await self._app(scope, receive, send)
        elif method == "HEAD" and "GET" in methods:
            await self._head(scope, receive, send)
        else:
            await _without_route(scope, methods)(scope, receive, send)

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Respond as to GET, without the body. A stream is ended at its first chunk: it may be endless."""

        async def without_body(message: Message) -> None:
            if message["type"] != "http.response.body":
                await send(message)
                return
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            if message.get("more_body"):
                raise _HeadersSent

        try:
            # Range applies to GET only (RFC 9110 section 14.2).
            headers = [(name, value) for name, value in scope["headers"] if name != b"range"]
            await self._app({**scope, "method": "GET", "headers": headers}, receive, without_body)
        except (_HeadersSent, ClientDisconnect):  # Starlette converts an OSError from `send`
            return


class _HeadersSent(OSError):
    """Ends the response after its headers, like a closed connection: an OSError from `send` (ASGI)."""


def _without_route(scope: Scope, methods: set[str]) -> Response:
    allowed = methods | {"OPTIONS"} | ({"HEAD"} if "GET" in methods else set())
    headers = {"Allow": ", ".join(sorted(allowed))}
    if scope["method"] == "OPTIONS":
        return Response(status_code=204, headers=headers)
    return respond(Request(scope), Problem(ProblemCode.METHOD_NOT_ALLOWED, "See the Allow header.", headers=headers))
