"""Blocking calls in threads, for calls that take less time than handing each one over."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any, TypeVar

R = TypeVar("R")


class CallThreads:
    """Runs calls of one event loop in at most `threads` threads, in order of submission.

    A thread goes on while calls are waiting, and the event loop is woken once for all that have ended meanwhile.
    """

    def __init__(self, threads: int, *, name: str) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._threads = threads
        self._running = 0  # changed by the event loop only
        self._waiting: deque[tuple[asyncio.Future[Any], Callable[[], Any]]] = deque()
        self._ended: deque[tuple[asyncio.Future[Any], Any, BaseException | None]] = deque()
        self._woken = False

    async def run(self, call: Callable[[], R]) -> R:
        """Return the result of a call, or raise its exception. A cancelled call does not begin."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[R] = loop.create_future()
        self._waiting.append((answer, call))
        self._start(loop)
        return await answer

    async def close(self) -> None:
        """Wait for running calls; those that have not begun are cancelled."""
        # Futures belong to the event loop, and threads take calls meanwhile.
        with suppress(IndexError):
            while True:
                self._waiting.popleft()[0].cancel()
        await asyncio.to_thread(self._pool.shutdown)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._waiting and self._running < self._threads:
            self._pool.submit(self._work, loop)
            self._running += 1

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the event loop is closed
            while True:
                try:
                    answer, call = self._waiting.popleft()
                except IndexError:
                    break
                if answer.done():
                    continue
                try:
                    self._ended.append((answer, call(), None))
                except BaseException as error:
                    self._ended.append((answer, None, error))
                if not self._woken:
                    self._woken = True
                    loop.call_soon_threadsafe(self._deliver)
            loop.call_soon_threadsafe(self._stopped, loop)

    def _stopped(self, loop: asyncio.AbstractEventLoop) -> None:
        self._running -= 1
        self._start(loop)  # a call may have come after the thread found none

    def _deliver(self) -> None:
        self._woken = False  # before the first is taken: what ends from now on wakes the event loop again
        while self._ended:
            answer, result, error = self._ended.popleft()
            if answer.done():
                continue
            if error is None:
                answer.set_result(result)
            else:
                answer.set_exception(error)
