"""A ReadModel behind circuit breakers: after repeated failures calls are refused at once.

Reads and writes have one each, because a full disk can still be read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager

from pydantic import JsonValue

from schemas.values import ImageState
from streams.concurrency.circuit_breaker import Breakers
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Filters, HistoryEntry, Hit, ImageRecord, StageRecord

READS = "read-model"
WRITES = "read-model-writes"
_PROBE = "00000000-0000-7000-8000-000000000000"  # no image's id: a probe writes and purges its tombstone


class BreakingReadModel:
    """A ReadModel that raises DependencyUnavailable at once while a breaker is open, with the remaining seconds."""

    def __init__(self, inner: ReadModel, breakers: Breakers) -> None:
        self._inner = inner
        self._reads = breakers.add(READS, self.check)
        self._writes = breakers.add(WRITES, self._check_writes)

    async def get(self, image_id: str) -> ImageRecord | None:
        with self._reads.passing():
            return await self._inner.get(image_id)

    async def begin(self, record: ImageRecord, *, history: Mapping[str, HistoryEntry] | None = None) -> None:
        with self._writes.passing():
            await self._inner.begin(record, history=history)

    async def merge(
        self,
        image_id: str,
        generation: int,
        patch: Mapping[str, JsonValue],
        *,
        stages: Mapping[str, StageRecord] | None = None,
        analysis: Mapping[str, Mapping[str, JsonValue]] | None = None,
        history: Mapping[str, HistoryEntry] | None = None,
        vector: Sequence[float] | None = None,
    ) -> None:
        with self._writes.passing():
            await self._inner.merge(
                image_id, generation, patch, stages=stages, analysis=analysis, history=history, vector=vector
            )

    async def history(self, image_id: str) -> dict[str, HistoryEntry]:
        with self._reads.passing():
            return await self._inner.history(image_id)

    async def keep_history(self, image_id: str, generation: int, entries: Mapping[str, HistoryEntry]) -> None:
        with self._writes.passing():
            await self._inner.keep_history(image_id, generation, entries)

    async def write_tombstone(self, image_id: str, owner: str, generation: int) -> None:
        with self._writes.passing():
            await self._inner.write_tombstone(image_id, owner, generation)

    async def find(self, owner: str, image_ids: Sequence[str]) -> list[ImageRecord]:
        with self._reads.passing():
            return await self._inner.find(owner, image_ids)

    async def page(
        self,
        owner: str | None,
        wanted: Filters,
        *,
        limit: int,
        beyond: str | None = None,
        oldest_first: bool = False,
        keys: Sequence[str] | None = None,
    ) -> list[ImageRecord]:
        with self._reads.passing():
            return await self._inner.page(
                owner, wanted, limit=limit, beyond=beyond, oldest_first=oldest_first, keys=keys
            )

    async def search_vector(
        self, owner: str, vector: Sequence[float], *, limit: int, min_score: float | None = None
    ) -> list[Hit]:
        with self._reads.passing():
            return await self._inner.search_vector(owner, vector, limit=limit, min_score=min_score)

    async def search_words(self, owner: str, query: str, *, limit: int) -> list[Hit]:
        with self._reads.passing():
            return await self._inner.search_words(owner, query, limit=limit)

    async def vector_of(self, image_id: str) -> list[float] | None:
        with self._reads.passing():
            return await self._inner.vector_of(image_id)

    async def uses_of(self, owner: str, sha256: str) -> int:
        with self._reads.passing():
            return await self._inner.uses_of(owner, sha256)

    async def count(self, owner: str | None = None) -> dict[str, int]:
        with self._reads.passing():
            return await self._inner.count(owner)

    async def scan(
        self, *, state: ImageState | None = None, after: str | None = None, limit: int = 256
    ) -> list[ImageRecord]:
        with self._reads.passing():
            return await self._inner.scan(state=state, after=after, limit=limit)

    async def purge(self, image_id: str, generation: int) -> None:
        with self._writes.passing():
            await self._inner.purge(image_id, generation)

    async def check(self) -> None:
        with self._reads.probing():
            await self._inner.check()

    async def _check_writes(self) -> None:
        with self._writes.probing():
            await self._inner.write_tombstone(_PROBE, "probe", 1)
            await self._inner.purge(_PROBE, 1)


@asynccontextmanager
async def open_breaking(model: AbstractAsyncContextManager[ReadModel], breakers: Breakers) -> AsyncIterator[ReadModel]:
    """Open a read model behind breakers."""
    async with model as inner:
        try:
            yield BreakingReadModel(inner, breakers)
        finally:
            breakers.remove(READS)
            breakers.remove(WRITES)
