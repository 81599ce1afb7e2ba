"""A table kept from elsewhere: read anew as a whole when it is old, and soon when it lacks what is asked for.

However many unknown names are asked for, the source is read once in so many seconds, and no more.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

import structlog

from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable

log = structlog.get_logger(__name__)
T = TypeVar("T")


class TtlCache(Generic[T]):
    """A table by name. `read` returns all of it, and may raise DependencyUnavailable or TimeoutError."""

    def __init__(
        self,
        what: str,
        read: Callable[[], Awaitable[dict[str, T]]],
        *,
        fresh_s: float,
        apart_s: float,
        stale_s: float,
        timeout_s: float,
        patient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._read = what, read
        self._fresh_s = fresh_s  # so old, it is read again
        self._apart_s = apart_s  # between two reads, whoever asks
        self._stale_s = stale_s  # so old, it is not believed any more if the source does not answer
        self._timeout_s = timeout_s
        self._patient = patient  # who asks for what is not there waits for the next read, instead of being told no
        self._clock = clock
        self._table: dict[str, T] = {}
        self._read_at = self._tried_at = float("-inf")
        self._turn = asyncio.Lock()

    async def find(self, name: str) -> T | None:
        """Return what has that name. Raises DependencyUnavailable when the source has not answered for too long."""
        old = self._clock() - self._read_at >= self._fresh_s
        if old or name not in self._table:
            await self._renew(patient=self._patient and not old)
        if self._clock() - self._read_at > self._stale_s:
            raise DependencyUnavailable(f"{self._what} cannot be read")
        return self._table.get(name)

    async def _renew(self, *, patient: bool) -> None:
        asked = self._clock()
        async with self._turn:
            # Who waited for somebody else's read has what they asked for.
            if self._tried_at >= asked:
                return
            if (early_s := self._tried_at + self._apart_s - self._clock()) > 0:
                if not patient:
                    return
                await asyncio.sleep(early_s)
            self._tried_at = began = self._clock()
            try:
                self._table = await bounded(self._read(), self._timeout_s)
                self._read_at = began
            except (DependencyUnavailable, TimeoutError) as error:
                log.warning("a table of keys could not be read", table=self._what, error=str(error) or repr(error))
