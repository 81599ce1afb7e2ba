"""Overload: what cannot be answered in time is turned away at once, and the rest is answered.

Without it everything that is asked is begun, nothing is answered in time, and in the end the watchdog takes the process
for stuck. Two signs: more questions in work than can be answered soon, and an event loop that is late, for whatever
reason. Uploads have bounds of their own, streams of events too; an answer that has begun does not count any more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.problems import Problem, respond
from schemas.http.problems import ProblemCode

_PULSE_S = 0.1
_QUESTIONS = frozenset({"GET", "HEAD"})
_CLOSE = {"Connection": "close"}  # the body is not read
_STREAMS = "/events"
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
    """ASGI middleware: 503 for whoever comes while more is in work, or the loop is later, than may be."""

    def __init__(self, app: ASGIApp, *, most_questions: int, most_late_s: float, retry_after_s: int) -> None:
        self._app = app
        self._most_questions = most_questions
        self._most_late_s = most_late_s
        self._retry_after_s = retry_after_s
        self._questions = 0
        self._pulse = Pulse()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or none."""
        if scope["type"] != "http" or scope["path"] in _ALWAYS:
            await self._app(scope, receive, send)
        elif self._pulse.late_s() > self._most_late_s:
            await self._refuse(scope, receive, send)
        elif scope["method"] not in _QUESTIONS or scope["path"].endswith(_STREAMS):
            await self._app(scope, receive, send)
        elif self._questions >= self._most_questions:
            await self._refuse(scope, receive, send)
        else:
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a question, which counts until its answer begins."""
        counted = True
        self._questions += 1

        async def begun(message: Message) -> None:
            nonlocal counted
            self._questions -= counted
            counted = False
            await send(message)

        try:
            await self._app(scope, receive, begun)
        finally:
            self._questions -= counted

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = Problem(
            ProblemCode.OVERLOADED,
            "More is asked than can be answered in time. Nothing was accepted or changed; try again.",
            # What has no body leaves its connection as it was: to make a new one costs more than to answer.
            headers={"Retry-After": str(self._retry_after_s)} | ({} if scope["method"] in _QUESTIONS else _CLOSE),
        )
        await respond(Request(scope), problem)(scope, receive, send)
