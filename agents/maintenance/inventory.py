"""Finds unfinished and damaged images among receipts, records and objects, a bounded number per pass."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import TypeVar

from pydantic import Field

from agents.core.merge import SANITIZER
from agents.maintenance.overdue import INDEXER, Waiting, accepted_at, lost, unfinished
from agents.maintenance.stored_positions import StoredPositions
from schemas.stored.erasures import Erasure
from schemas.stored.receipts import Receipt
from schemas.values import ImageState, earliest_id, job_id_of, made_at
from streams.object_store.keys import image_prefix
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import RECEIPTS, generation_of, read_receipt, receipt_keys
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import Group

_AT_ONCE = 16
_PAGE = 512
CACHED = 200_000  # jobs; any other costs one read when it is visited

_Job = tuple[str, int]  # image id and generation

A = TypeVar("A")
B = TypeVar("B")


class InventorySettings(Group):
    """How much one pass examines."""

    overdue_s: float = Field(
        3600.0, gt=0, description="seconds without a new fact that make an image overdue; above all delays"
    )
    window_s: float = Field(604_800.0, gt=0, description="receipts older than these seconds are not listed")
    receipts_per_pass: int = Field(100_000, ge=1, description="receipts listed in one pass; the next pass continues")
    records_per_pass: int = Field(20_000, ge=1, description="unfinished records read in one pass, the oldest first")
    objects_per_pass: int = Field(100, ge=1, description="completed images whose objects are checked in one pass")


@dataclass(frozen=True, slots=True)
class Found:
    """One image's receipt, record and erasure, the work it waits for and its missing objects."""

    image_id: str
    record: ImageRecord | None
    receipt: Receipt | None
    erasure: Erasure | None = None
    waiting: tuple[Waiting, ...] = ()
    missing: tuple[tuple[str, str], ...] = ()  # (stage that makes it, key)
    job: int = 0  # the generation its receipt names

    @property
    def generation(self) -> int:
        """The newest known run."""
        known = (self.record, self.receipt, self.erasure)
        return max((one.generation for one in known if one is not None), default=self.job)

    @property
    def accepted_at(self) -> float:
        """Acceptance of the unfinished run or deletion, unix seconds; not of the image."""
        if self.waiting and (self.record is None or self.record.generation > 1 or self.waiting[0].agent == INDEXER):
            return min(one.since for one in self.waiting)
        known = self.record or self.receipt
        return accepted_at(known) if known is not None else made_at(self.image_id)


@dataclass(slots=True)
class Inventory:
    """Scans for images; its only state is its positions, which are stored, and caches. Raises DependencyUnavailable."""

    files: FileStore
    read_model: ReadModel
    settings: InventorySettings
    _positions: StoredPositions = field(init=False)
    _receipt: str | None = None
    _completed: str | None = None
    _settled: dict[_Job, None] = field(default_factory=dict)  # jobs the scan of records covers
    _unfinished_jobs: dict[_Job, tuple[Waiting, ...]] = field(default_factory=dict)  # jobs without a record

    def __post_init__(self) -> None:
        self._positions = StoredPositions(self.files, "reconciler")

    async def resume(self) -> None:
        """Continue from the stored positions; without effect after the first call."""
        if (stored := await self._positions.load()) is not None:
            self._receipt, self._completed = stored.get("receipts"), stored.get("completed")

    async def store_positions(self) -> None:
        """Store where the next pass continues."""
        await self._positions.store({"receipts": self._receipt, "completed": self._completed})

    async def unfinished(self, now: float, *, everything: bool) -> AsyncIterator[Found]:
        """Return the images that have not ended: accepted without a fact, processing, or awaiting deletion."""
        async for found in self._accepted(now, everything=everything):
            yield found
        async for record in self._scan(ImageState.PROCESSING, None if everything else self.settings.records_per_pass):
            if SANITIZER in record.stages:
                yield Found(record.image_id, record, None, waiting=unfinished(record, None))
            else:  # only its receipt says whether it is fetched first
                yield await self.examine(record.image_id)
        async for image_id in Tombstones(self.files).unfinished():
            erasure = await Tombstones(self.files).get(image_id)
            if erasure is not None and erasure.erased_at is None:
                yield await self.examine(image_id)

    async def damaged(self, now: float, *, everything: bool) -> AsyncIterator[Found]:
        """Return the next page of completed images, or all of them, that have missing objects."""
        settled = now - self.settings.overdue_s
        images = self._scan(ImageState.COMPLETED) if everything else self._next_completed()
        async for found in _each(images, self._damage):
            if found.missing and found.accepted_at < settled:
                yield found

    async def examine(self, image_id: str) -> Found:
        """Return the current state of one image."""
        record = await self.read_model.get(image_id)
        newest = max([generation_of(key) async for key in receipt_keys(self.files, image_id)], default=0)
        receipt = await read_receipt(self.files, job_id_of(image_id, newest)) if newest else None
        erasure = await Tombstones(self.files).get(image_id)
        waiting = unfinished(record, receipt, erasure)
        missing = (await self._damage(record)).missing if record is not None and not waiting else ()
        return Found(image_id, record, receipt, erasure, waiting, missing)

    async def _accepted(self, now: float, *, everything: bool) -> AsyncIterator[Found]:
        """List the receipts (one per job) by age of the image, from where the previous listing ended."""
        earliest = earliest_id(now - self.settings.window_s)
        start = RECEIPTS + earliest
        after = start if everything or self._receipt is None else max(start, self._receipt)
        most = None if everything else self.settings.receipts_per_pass
        newest: dict[str, int] = {}
        listed, last = 0, None
        async for info in self.files.list(RECEIPTS, after=after):
            last, listed = info.key, listed + 1
            if generation := generation_of(info.key):
                image_id = info.key.removeprefix(RECEIPTS).partition(".")[0]
                newest[image_id] = max(newest.get(image_id, 0), generation)
            if listed == most:
                break
        if not everything:
            self._receipt = last if listed == most else None
        _forget_older(self._settled, earliest)
        _forget_older(self._unfinished_jobs, earliest)
        async for found in _each(_aiter(newest.items()), self._examine_job):
            if found is not None:
                yield found

    async def _examine_job(self, job: _Job) -> Found | None:
        image_id, generation = job
        if job in self._settled:
            return None
        record = await self.read_model.get(image_id)
        if record is not None and record.generation >= generation:  # the scan of records covers it
            _cache(self._settled, job, None)
            self._unfinished_jobs.pop(job, None)
            return None
        waiting = self._unfinished_jobs.get(job)
        if waiting is None:
            receipt = await read_receipt(self.files, job_id_of(image_id, generation))
            if receipt is None:
                return None
            waiting = unfinished(record, receipt)
            _cache(self._unfinished_jobs, job, waiting)
        return Found(image_id, None, None, waiting=waiting, job=generation)

    async def _damage(self, record: ImageRecord) -> Found:
        prefix = image_prefix(record.image_id)
        existing = {info.key async for info in self.files.list(prefix)}
        gone = [(stage, ref.key) for stage, refs in lost(record, existing).items() for ref in refs]
        # Facts of another service may name objects outside the prefix.
        missing = [(stage, key) for stage, key in gone if key.startswith(prefix) or not await self.files.stat(key)]
        return Found(record.image_id, record, None, missing=tuple(missing))

    async def _scan(self, state: ImageState, most: int | None = None) -> AsyncIterator[ImageRecord]:
        after, seen = None, 0
        while page := await self.read_model.scan(state=state, after=after, limit=_PAGE):
            for record in page:
                yield record
            after, seen = page[-1].image_id, seen + len(page)
            if most is not None and seen >= most:
                return

    async def _next_completed(self) -> AsyncIterator[ImageRecord]:
        """Return the next page of completed images; after the last page the first."""
        limit = self.settings.objects_per_pass
        page = await self.read_model.scan(state=ImageState.COMPLETED, after=self._completed, limit=limit)
        self._completed = page[-1].image_id if len(page) == limit else None
        for record in page:
            yield record


def _cache(known: dict[_Job, A], job: _Job, value: A) -> None:
    """Cache a value while there is room.

    The listing visits all jobs in turn: replacing the oldest entry would evict each one before its next visit.
    """
    if len(known) < CACHED:
        known[job] = value


def _forget_older(known: dict[_Job, A], earliest: str) -> None:
    """Make room in a full cache: drop the jobs of images that left the window."""
    if len(known) >= CACHED:
        for job in [job for job in known if job[0] < earliest]:
            del known[job]


async def _each(items: AsyncIterator[A], work: Callable[[A], Awaitable[B]]) -> AsyncIterator[B]:
    """Apply `work` to each item, a few at once; return the answers in order."""
    batch: list[A] = []
    async for item in items:
        batch.append(item)
        if len(batch) == _AT_ONCE:
            for answer in await asyncio.gather(*map(work, batch)):
                yield answer
            batch.clear()
    for answer in await asyncio.gather(*map(work, batch)):
        yield answer


async def _aiter(items: Iterable[A]) -> AsyncIterator[A]:
    for item in items:
        yield item
