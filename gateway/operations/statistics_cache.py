"""Cache of rates, queue lengths and inventory counts, refreshed in the background on demand."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from gateway.operations.inventory_counts import CachedValue, Objects, Records, ScanPace, count_objects, count_records
from gateway.operations.settings import StatisticsSettings
from schemas.events.envelope import now
from schemas.http.operations import RateCounts
from schemas.values import ImageState
from streams.object_store.protocol import FileStore
from streams.operations.recent_rates import ACCEPTED, MINUTES
from streams.read_model.protocol import ReadModel
from streams.topics import GIVES_UP

_CALL_S = 30.0  # per page of a scan
_NEVER_S = 1e9  # only the first scan is waited for


class RecentEvents(Protocol):
    """Counts recent events (streams.operations.recent_rates.RecentLog)."""

    behind: bool

    async def look(self) -> None:
        """Count the events since the last call. Raises DependencyUnavailable."""

    def lately(self, owner: str | None) -> dict[str, dict[int, int]]:
        """Return counts by outcome and by length of the window in minutes; of one owner, or of all (None)."""


class Backlog(Protocol):
    """Measures consumer lag (streams.operations.consumer_lag.Backlog)."""

    async def waiting(self, agent: str) -> int:
        """Return the number of events waiting for an agent. Raises DependencyUnavailable."""


class StatisticsCache:
    """Caches the statistics. Open with `open_statistics_cache`."""

    def __init__(
        self,
        settings: StatisticsSettings,
        files: FileStore,
        read_model: ReadModel,
        recent: RecentEvents,
        backlog: Backlog,
    ) -> None:
        self.settings = settings
        self._recent, self._backlog = recent, backlog
        records = ScanPace(settings.max_records, settings.rest, _CALL_S)
        objects = ScanPace(settings.max_objects, settings.rest, _CALL_S)
        self.records: CachedValue[Records] = CachedValue(
            lambda: count_records(read_model, records), every_s=settings.walk_every_s, stale_s=_NEVER_S
        )
        self.objects: CachedValue[Objects] = CachedValue(
            lambda: count_objects(files, objects), every_s=settings.walk_every_s, stale_s=_NEVER_S
        )
        self.looked: CachedValue[str] = CachedValue(self._look, every_s=settings.refresh_s, stale_s=settings.refresh_s)
        self.queues: CachedValue[dict[str, int]] = CachedValue(
            self._queues, every_s=settings.refresh_s, stale_s=settings.refresh_s
        )

    async def rates(self, owner: str | None) -> RateCounts | None:
        """Return images per minute, None while Kafka is unavailable."""
        as_of = await self.looked.get(self.settings.wait_s)
        if as_of is None:
            return None
        counts = self._recent.lately(owner)
        names = (ACCEPTED, ImageState.COMPLETED.value, ImageState.REJECTED.value, ImageState.FAILED.value)
        per_minute = {
            name: {str(minutes): round(counts.get(name, {}).get(minutes, 0) / minutes, 2) for minutes in MINUTES}
            for name in names
        }
        return RateCounts.model_validate({**per_minute, "complete": not self._recent.behind, "as_of": as_of})

    async def close(self) -> None:
        """Stop counting."""
        await asyncio.gather(*(one.close() for one in (self.records, self.objects, self.looked, self.queues)))

    async def _look(self) -> str:
        await self._recent.look()
        return now()

    async def _queues(self) -> dict[str, int]:
        counts = await asyncio.gather(*(self._backlog.waiting(agent) for agent in GIVES_UP))
        return dict(zip(GIVES_UP, counts, strict=True))


@asynccontextmanager
async def open_statistics_cache(
    settings: StatisticsSettings, files: FileStore, read_model: ReadModel, recent: RecentEvents, backlog: Backlog
) -> AsyncIterator[StatisticsCache]:
    """Open the cache. Nothing is counted before the first request."""
    cache = StatisticsCache(settings, files, read_model, recent, backlog)
    try:
        yield cache
    finally:
        await cache.close()
