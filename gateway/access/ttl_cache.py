"""A cached table: reloaded as a whole after its TTL, and earlier for a name it lacks.

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
        patient: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._read = what, read
        self._fresh_s = fresh_s  # age at which it is reloaded
        self._apart_s = apart_s  # minimum time between two reads
        self._stale_s = stale_s  # age at which it is no longer used if the source does not answer
        self._timeout_s = timeout_s
        self._patient = patient  # a lookup of an unknown name waits for the next read
        self._clock = clock
        self._table: dict[str, T] = {}
        self._read_at = self._tried_at = float("-inf")
        self._lock = asyncio.Lock()

    async def find(self, name: str) -> T | None:
        """Return the entry of a name, None without. Raises DependencyUnavailable once the table is too old to use."""
        old = self._clock() - self._read_at >= self._fresh_s
        if old or name not in self._table:
            await self._reload(patient=self._patient and not old)
        if self._clock() - self._read_at > self._stale_s:
            raise DependencyUnavailable(f"{self._what} cannot be read")
        return self._table.get(name)

    async def _reload(self, *, patient: bool) -> None:
        asked = self._clock()
        async with self._lock:
            # A read by another caller has finished meanwhile.
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
                log.warning("keys could not be reloaded", table=self._what, error=str(error) or repr(error))
