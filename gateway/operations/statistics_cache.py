"""Numbers: rates, queues and what there is, made in the background when somebody asks and they are old."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

from pydantic import Field

from gateway.operations.inventory_counts import Objects, Pace, Records, Refreshed, count_objects, count_records
from schemas.events.envelope import now
from schemas.http.operations import RateCounts
from schemas.values import ImageState
from streams.object_store.protocol import FileStore
from streams.operations.recent_rates import ACCEPTED, MINUTES
from streams.read_model.protocol import ReadModel
from streams.settings import Group
from streams.topics import GIVES_UP

_CALL_S = 30.0  # for one page of a walk
_NEVER_S = 1e9  # a walk is only waited for when there was none


class StatisticsSettings(Group):
    """How often numbers are made anew, and how much is looked at for them; DARKROOM_STATISTICS__…"""

    refresh_s: float = Field(
        10.0, ge=0, description="seconds rates and queues are told again before they are asked for"
    )
    walk_every_s: float = Field(300.0, ge=0, description="seconds between two walks over records and objects")
    max_records: int = Field(50_000, ge=1, description="images whose stages are counted in one walk, the newest")
    max_objects: int = Field(500_000, ge=1, description="objects of each kind counted in one walk")
    rest: float = Field(4.0, ge=0, description="seconds of rest for each second of walking")
    wait_s: float = Field(3.0, gt=0, description="seconds a first request waits for numbers that were never made")


class Recent(Protocol):
    """Whoever knows what happened lately (streams.operations.recent_rates.RecentLog)."""

    behind: bool

    async def look(self) -> None:
        """Count what came since the last look. Raises DependencyUnavailable."""

    def lately(self, owner: str | None) -> dict[str, dict[int, int]]:
        """Return, by what happened and by the minutes before the last look, how often; of one owner or of everybody."""


class Waiting(Protocol):
    """Whoever knows what waits (streams.operations.consumer_lag.Backlog)."""

    async def waiting(self, agent: str) -> int:
        """Return how many events wait for an agent. Raises DependencyUnavailable."""


class StatisticsCache:
    """Makes the numbers. Open it with `open_numbers`."""

    def __init__(
        self, settings: StatisticsSettings, files: FileStore, read_model: ReadModel, recent: Recent, backlog: Waiting
    ) -> None:
        self.settings = settings
        self._recent, self._backlog = recent, backlog
        records = Pace(settings.max_records, settings.rest, _CALL_S)
        objects = Pace(settings.max_objects, settings.rest, _CALL_S)
        self.records: Refreshed[Records] = Refreshed(
            lambda: count_records(read_model, records), every_s=settings.walk_every_s, stale_s=_NEVER_S
        )
        self.objects: Refreshed[Objects] = Refreshed(
            lambda: count_objects(files, objects), every_s=settings.walk_every_s, stale_s=_NEVER_S
        )
        self.looked: Refreshed[str] = Refreshed(self._look, every_s=settings.refresh_s, stale_s=settings.refresh_s)
        self.queues: Refreshed[dict[str, int]] = Refreshed(
            self._queues, every_s=settings.refresh_s, stale_s=settings.refresh_s
        )

    async def rates(self, owner: str | None) -> RateCounts | None:
        """Return how many images a minute; None while Kafka does not say."""
        as_of = await self.looked.get(self.settings.wait_s)
        if as_of is None:
            return None
        counts = self._recent.lately(owner)
        names = (ACCEPTED, ImageState.COMPLETED.value, ImageState.REJECTED.value, ImageState.FAILED.value)
        told = {
            name: {str(minutes): round(counts.get(name, {}).get(minutes, 0) / minutes, 2) for minutes in MINUTES}
            for name in names
        }
        return RateCounts.model_validate({**told, "complete": not self._recent.behind, "as_of": as_of})

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
async def open_numbers(
    settings: StatisticsSettings, files: FileStore, read_model: ReadModel, recent: Recent, backlog: Waiting
) -> AsyncIterator[StatisticsCache]:
    """Open what makes the numbers. Nothing is counted before somebody asks."""
    numbers = StatisticsCache(settings, files, read_model, recent, backlog)
    try:
        yield numbers
    finally:
        await numbers.close()
