"""Inventory counts: images and objects, counted in the background, bounded in number and pace."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from schemas.events.envelope import now
from schemas.values import ImageState, ObjectRef, StageState
from streams.concurrency.timeouts import bounded
from streams.object_store.protocol import FileStore
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Filters, ImageRecord

log = logging.getLogger(__name__)

T = TypeVar("T")

KINDS = {
    "originals": "originals/",
    "images": "images/",
    "results": "results/",
    "receipts": "jobs/",
    "claims": "claims/",
    "erasures": "erasures/",
    "pending-deletions": "deletions/",
    "dead-letter-marks": "dead-letters/",
}
"""Kinds of objects and their key prefixes."""

_PAGE = 200  # records per query
_OBJECTS_PER_PAUSE = 500  # listed objects between two pauses
_MAX_OWNERS = 10_000  # counted separately


class CachedValue(Generic[T]):
    """A value that is refreshed in the background on demand; callers wait for it only for a bounded time."""

    def __init__(self, make: Callable[[], Awaitable[T]], *, every_s: float, stale_s: float) -> None:
        """Refresh the value at most every `every_s`; callers wait only for one older than `stale_s`."""
        self._make = make
        self._every_s = every_s
        self._stale_s = stale_s
        self._value: T | None = None
        self._made_at = float("-inf")
        self._begun_at = float("-inf")
        self._making: asyncio.Task[None] | None = None

    async def get(self, wait_s: float) -> T | None:
        """Return the value, None if there is none after `wait_s`."""
        if self._making is None or (self._making.done() and time.monotonic() - self._begun_at >= self._every_s):
            self._begun_at = time.monotonic()
            self._making = asyncio.create_task(self._renew())
        if time.monotonic() - self._made_at >= self._stale_s:
            await asyncio.wait({self._making}, timeout=wait_s)
        return self._value

    async def close(self) -> None:
        """Cancel a refresh in progress."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)

    async def _renew(self) -> None:
        try:
            self._value = await self._make()
            self._made_at = time.monotonic()
        except Exception as error:  # the old value stays and the next request retries
            log.warning("statistics refresh failed", extra={"error": repr(error)})


@dataclass(frozen=True, slots=True)
class ScanPace:
    """The limit of a scan, and its pace: `rest` seconds of pause per second of work."""

    most: int
    rest: float
    timeout_s: float  # per call

    async def pause(self, began: float) -> None:
        """Pause in proportion to the time since `began`."""
        await asyncio.sleep(self.rest * (time.monotonic() - began))


COUNTED_KEYS = ("stages", "required", "original", "master", "pages", "renditions")  # read by `InventoryCounts.add`


@dataclass(slots=True)
class InventoryCounts:
    """Counts of one owner's images and objects, or of all owners'."""

    images: int = 0
    stages: Counter[tuple[str, str]] = field(default_factory=Counter)  # stage, state
    objects: Counter[str] = field(default_factory=Counter)  # by kind
    bytes: Counter[str] = field(default_factory=Counter)

    def add(self, record: ImageRecord) -> None:
        """Count one image."""
        self.images += 1
        for name, stage in record.stages.items():
            self.stages[name, stage.state.value] += 1
        if record.state is ImageState.PROCESSING:
            for name in record.required:
                if name not in record.stages:
                    self.stages[name, StageState.PENDING.value] += 1
        self._add_object("originals", record.original)
        for ref in (*record.sanitized(), *(rendition.object for rendition in record.renditions)):
            self._add_object("images", ref)
        for stage in record.stages.values():
            self._add_object("results", stage.result)

    def _add_object(self, kind: str, ref: ObjectRef | None) -> None:
        if ref is not None:
            self.objects[kind] += 1
            self.bytes[kind] += ref.size


@dataclass(frozen=True, slots=True)
class Records:
    """Counts of the read model's records."""

    all_owners: InventoryCounts
    by_owner: dict[str, InventoryCounts]
    complete: bool
    as_of: str

    def of(self, owner: str | None) -> InventoryCounts:
        """Return the counts of one owner, or of all owners (None)."""
        return self.all_owners if owner is None else self.by_owner.get(owner, InventoryCounts())


@dataclass(frozen=True, slots=True)
class Objects:
    """Counts of the object store: kind -> objects and bytes."""

    kinds: dict[str, tuple[int, int]]
    complete: bool
    as_of: str


async def count_records(read_model: ReadModel, pace: ScanPace) -> Records:
    """Count the newest records of all owners, up to `pace.most`."""
    all_owners, by_owner = InventoryCounts(), dict[str, InventoryCounts]()
    beyond: str | None = None
    truncated = False
    while all_owners.images < pace.most:
        began = time.monotonic()
        page = await bounded(
            read_model.page(None, Filters(), limit=_PAGE, beyond=beyond, keys=COUNTED_KEYS), pace.timeout_s
        )
        for record in page:
            all_owners.add(record)
            if record.owner in by_owner or len(by_owner) < _MAX_OWNERS:
                by_owner.setdefault(record.owner, InventoryCounts()).add(record)
            else:
                truncated = True
        if len(page) < _PAGE:
            return Records(all_owners, by_owner, not truncated, now())
        beyond = page[-1].image_id
        await pace.pause(began)
    return Records(all_owners, by_owner, False, now())


async def count_objects(files: FileStore, pace: ScanPace) -> Objects:
    """Count stored objects and their bytes, up to `pace.most` of each kind."""
    kinds: dict[str, tuple[int, int]] = {}
    complete = True
    for kind, prefix in KINDS.items():
        count = size = 0
        began = time.monotonic()
        objects = aiter(files.list(prefix))
        while (info := await bounded(anext(objects, None), pace.timeout_s)) is not None:
            count, size = count + 1, size + info.size
            if count >= pace.most:
                complete = False
                break
            if count % _OBJECTS_PER_PAUSE == 0:
                await pace.pause(began)
                began = time.monotonic()
        kinds[kind] = (count, size)
    return Objects(kinds, complete, now())
