"""ASGI middleware of every app: correlation id, trace context, metrics, safe response headers."""

from __future__ import annotations

import re
import time
import uuid

import structlog
from fastapi import Request
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.problems import bug
from streams.telemetry.metrics import HTTP_REQUESTS, HTTP_SECONDS
from streams.telemetry.tracing import child_of

_CORRELATION_ID = re.compile(r"^[A-Za-z0-9._-]{1,128}$")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "QUERY"})


class Edge:
    """ASGI middleware around an app; does not buffer responses."""

    def __init__(self, app: ASGIApp, *, name: str) -> None:
        self._app = app
        self._name = name

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        sent = headers.get("x-correlation-id", "")
        correlation_id = sent if _CORRELATION_ID.match(sent) else str(uuid.uuid4())
        state = scope.setdefault("state", {})
        state["correlation_id"] = correlation_id
        state["traceparent"] = child_of(headers.get("traceparent"))
        status, answered = 0, 0.0

        async def send_on(message: Message) -> None:
            nonlocal status, answered
            if message["type"] == "http.response.start":
                status = message["status"]
                found = MutableHeaders(scope=message)
                if found.get("content-type", "").startswith("text/event-stream"):
                    answered = time.perf_counter()  # a stream counts until it begins
                found["X-Correlation-ID"] = correlation_id
                found.setdefault("X-Content-Type-Options", "nosniff")
                found.setdefault("Cache-Control", "no-store")
            await send(message)

        started = time.perf_counter()
        with structlog.contextvars.bound_contextvars(correlation_id=correlation_id):
            try:
                await self._app(scope, receive, send_on)
            except Exception as error:
                answer = bug(Request(scope), error)
                if status:
                    raise  # the response has begun: the server closes the connection, which the client notices
                await answer(scope, receive, send_on)
            finally:
                # The route's template: a path would put ids into labels.
                route = getattr(scope.get("route"), "path", "unmatched")
                method = scope["method"] if scope["method"] in _METHODS else "other"
                HTTP_REQUESTS.labels(self._name, route, method, str(status or 499)).inc()
                HTTP_SECONDS.labels(self._name, route).observe((answered or time.perf_counter()) - started)
