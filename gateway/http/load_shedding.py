"""Load shedding: requests above the capacity get 503 at once, so that the rest is answered in time.

Overload is detected by the number of reads in progress and by the delay of the event loop. Without shedding, every
request would be late, and the watchdog would restart the process. Uploads and event streams have limits of their own; a
read counts until its response begins, and not while its credentials are checked: callers without valid ones take no
place from those who have them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gateway.http.problems import Problem, respond
from schemas.http.problems import ProblemCode

_BEAT_S = 0.1
_READS = frozenset({"GET", "HEAD"})
_CLOSE = {"Connection": "close"}  # the body is not read
_STREAMS = "/events"
_EXEMPT = frozenset({"/health/live", "/metrics"})  # needed most under overload
_PLACE = "darkroom.read_place"  # in the scope of a read: its place among the reads in progress


@dataclass(slots=True)
class LoopDelay:
    """The delay of the running event loop, measured by a timer that runs only while it is read."""

    _due: float | None = None
    _was_read: bool = False

    def late_s(self) -> float:
        """Return the seconds by which the loop is behind its timer."""
        loop = asyncio.get_running_loop()
        self._was_read = True
        if self._due is None:
            self._schedule(loop)
            return 0.0
        return max(0.0, loop.time() - self._due)

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = loop.time() + _BEAT_S
        loop.call_at(self._due, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        if not self._was_read:
            self._due = None
            return
        self._was_read = False
        self._schedule(loop)


@dataclass(slots=True)
class _Reads:
    """The number of reads in progress."""

    count: int = 0


@dataclass(slots=True)
class _Place:
    """The place of one read: taken until its response begins."""

    reads: _Reads
    taken: bool = False
    ended: bool = False

    def take(self) -> None:
        """Count the read, unless its response has begun."""
        if not self.taken and not self.ended:
            self.taken = True
            self.reads.count += 1

    def leave(self) -> None:
        """Count the read no longer."""
        self.reads.count -= self.taken
        self.taken = False

    def end(self) -> None:
        """Count the read never again."""
        self.leave()
        self.ended = True


@contextmanager
def uncounted(scope: Scope) -> Iterator[None]:
    """Count a request as no read in progress within the block, as while it waits for its credentials to be checked."""
    place: _Place | None = scope.get(_PLACE)
    if place is None:
        yield
        return
    place.leave()
    try:
        yield
    finally:
        place.take()


class Overload:
    """ASGI middleware: 503 while too many reads are in progress, or the event loop is too late."""

    def __init__(self, app: ASGIApp, *, most_questions: int, most_late_s: float, retry_after_s: int) -> None:
        self._app = app
        self._most_questions = most_questions
        self._most_late_s = most_late_s
        self._retry_after_s = retry_after_s
        self._reads = _Reads()
        self._delay = LoopDelay()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        if scope["type"] != "http" or scope["path"] in _EXEMPT:
            await self._app(scope, receive, send)
        elif self._delay.late_s() > self._most_late_s:
            await self._refuse(scope, receive, send)
        elif scope["method"] not in _READS or scope["path"].endswith(_STREAMS):
            await self._app(scope, receive, send)
        elif self._reads.count >= self._most_questions:
            await self._refuse(scope, receive, send)
        else:
            await self._read(scope, receive, send)

    async def _read(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a read, which counts until its response begins."""
        place = scope[_PLACE] = _Place(self._reads)
        place.take()

        async def begun(message: Message) -> None:
            place.end()
            await send(message)

        try:
            await self._app(scope, receive, begun)
        finally:
            place.end()

    async def _refuse(self, scope: Scope, receive: Receive, send: Send) -> None:
        problem = Problem(
            ProblemCode.OVERLOADED,
            "The server cannot respond in time. Nothing was accepted or changed; retry later.",
            # Without a body the connection stays open: a new one costs more than the response.
            headers={"Retry-After": str(self._retry_after_s)} | ({} if scope["method"] in _READS else _CLOSE),
        )
        await respond(Request(scope), problem)(scope, receive, send)
