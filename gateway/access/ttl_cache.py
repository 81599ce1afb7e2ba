"""A cached table: reloaded as a whole after its TTL, and with `find` earlier for a name it lacks.

Reloads are at least `apart_s` apart, however many unknown names are looked up.
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
    """A table by name. `read` loads all of it, and may raise DependencyUnavailable or TimeoutError."""

    def __init__(
        self,
        what: str,
        read: Callable[[], Awaitable[dict[str, T]]],
        *,
        fresh_s: float,
        apart_s: float,
        stale_s: float,
        timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._read = what, read
        self._fresh_s = fresh_s  # age at which it is reloaded
        self._apart_s = apart_s  # minimum time between two reads
        self._stale_s = stale_s  # age at which it is no longer used if the source does not answer
        self._timeout_s = timeout_s
        self._clock = clock
        self._table: dict[str, T] = {}
        self._read_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def find(self, name: str) -> T | None:
        """Return the entry of a name, None without. Raises DependencyUnavailable once the table is too old to use."""
        if name not in self._table and self._clock() - self._read_at < self._fresh_s:
            await self._reload()
        return await self.current(name)

    async def current(self, name: str, *, fresh_s: float | None = None) -> T | None:
        """Return the entry of a name in a table younger than `fresh_s`, without a read for the name itself.

        Raises DependencyUnavailable once the table is too old to use.
        """
        if self._clock() - self._read_at >= (self._fresh_s if fresh_s is None else fresh_s):
            await self._reload()
        if self._clock() - self._read_at > self._stale_s:
            raise DependencyUnavailable(f"{self._what} cannot be read")
        return self._table.get(name)

    def add(self, name: str, entry: T) -> None:
        """Add an entry that was read by itself; the next reload replaces it."""
        self._table[name] = entry

    async def _reload(self) -> None:
        asked = self._clock()
        async with self._lock:
            # A read by another caller has finished meanwhile.
            if self._tried_at >= asked:
                return
            if self._clock() - self._tried_at < self._apart_s:
                return
            self._tried_at = began = self._clock()
            try:
                self._table = await bounded(self._read(), self._timeout_s)
                self._read_at = began
            except (DependencyUnavailable, TimeoutError) as error:
                log.warning("keys could not be reloaded", table=self._what, error=str(error) or repr(error))
