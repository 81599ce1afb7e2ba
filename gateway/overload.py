"""Overload: when the event loop cannot keep up, new requests are turned away at once, and the rest are answered.

Without it everything that is asked is begun, nothing is answered in time, and in the end the watchdog takes the process
for stuck. How late the loop is says it best: it knows of slow clients, slow stores and busy cores alike.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway.problems import Problem, respond
from schemas.http_api import ProblemCode

_PULSE_S = 0.1
_ALWAYS = frozenset({"/health/live", "/metrics"})  # who asks these wants to know exactly now


@dataclass(slots=True)
class Pulse:
    """How late the running event loop is. Beats only while somebody asks."""

    _due: float | None = None
    _asked: bool = False

    def late_s(self) -> float:
        """Return by how many seconds the loop is behind what it was to do by now."""
        loop = asyncio.get_running_loop()
        self._asked = True
        if self._due is None:
            self._next(loop)
            return 0.0
        return max(0.0, loop.time() - self._due)

    def _next(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + _PULSE_S
        loop.call_at(self._due, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._asked:
            self._due = None
            return
        self._asked = False
        self._next(loop)


class Overload:
    """ASGI middleware: 503 for whoever comes while the loop is later than it may be."""

    def __init__(self, app: ASGIApp, *, most_late_s: float, retry_after_s: int) -> None:
        self._app = app
        self._most_late_s = most_late_s
        self._retry_after_s = retry_after_s
        self._pulse = Pulse()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or none."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS or self._pulse.late_s() <= self._most_late_s:
            await self._app(scope, receive, send)
            return
        problem = Problem(
            ProblemCode.OVERLOADED,
            "More is asked than can be answered in time. Nothing was accepted or changed; try again.",
            headers={"Retry-After": str(self._retry_after_s), "Connection": "close"},
        )
        await respond(Request(scope), problem)(scope, receive, send)
