"""The census: what images and objects there are, counted in the background, a bounded number, at a bounded pace."""

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
    "dead-letter-marks": "dead-letters/",
}
"""What is stored, and under which prefix."""

_PAGE = 200  # records read at once
_BREATH = 500  # objects listed between two pauses
_MAX_OWNERS = 10_000  # whose numbers are kept apart


class Refreshed(Generic[T]):
    """A value that is made anew when somebody asks and it is old; whoever asks is not kept waiting for it for long."""

    def __init__(self, make: Callable[[], Awaitable[T]], *, every_s: float, stale_s: float) -> None:
        """Make a value again after `every_s`; one older than `stale_s` is worth waiting for."""
        self._make = make
        self._every_s = every_s
        self._stale_s = stale_s
        self._value: T | None = None
        self._made_at = float("-inf")
        self._begun_at = float("-inf")
        self._making: asyncio.Task[None] | None = None

    async def get(self, wait_s: float) -> T | None:
        """Return the value; None when there is none yet after waiting for so long."""
        if self._making is None or (self._making.done() and time.monotonic() - self._begun_at >= self._every_s):
            self._begun_at = time.monotonic()
            self._making = asyncio.create_task(self._renew())
        if time.monotonic() - self._made_at >= self._stale_s:
            await asyncio.wait({self._making}, timeout=wait_s)
        return self._value

    async def close(self) -> None:
        """Stop making it."""
        if self._making is not None:
            self._making.cancel()
            await asyncio.gather(self._making, return_exceptions=True)

    async def _renew(self) -> None:
        try:
            self._value = await self._make()
            self._made_at = time.monotonic()
        except Exception as error:  # whatever it is, the value stays as it was, and is tried again
            log.warning("statistics could not be made", extra={"error": repr(error)})


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is looked at, and how fast: for each second of work, seconds of rest."""

    most: int
    rest: float
    timeout_s: float  # of one call

    async def breathe(self, began: float) -> None:
        """Rest after the work since then."""
        await asyncio.sleep(self.rest * (time.monotonic() - began))


@dataclass(slots=True)
class Totals:
    """Of one owner, or of everybody."""

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
        self._hold("originals", record.original)
        for ref in (record.master, *(rendition.object for rendition in record.renditions)):
            self._hold("images", ref)
        for stage in record.stages.values():
            self._hold("results", stage.result)

    def _hold(self, kind: str, ref: ObjectRef | None) -> None:
        if ref is not None:
            self.objects[kind] += 1
            self.bytes[kind] += ref.size


@dataclass(frozen=True, slots=True)
class Records:
    """What the read model has."""

    everybody: Totals
    by_owner: dict[str, Totals]
    complete: bool
    as_of: str

    def of(self, owner: str | None) -> Totals:
        """Return the totals of one owner, or of everybody."""
        return self.everybody if owner is None else self.by_owner.get(owner, Totals())


@dataclass(frozen=True, slots=True)
class Objects:
    """What the store has: kind -> objects and bytes."""

    kinds: dict[str, tuple[int, int]]
    complete: bool
    as_of: str


async def count_records(read_model: ReadModel, pace: Pace) -> Records:
    """Look at the newest records of all owners."""
    everybody, by_owner = Totals(), dict[str, Totals]()
    beyond: str | None = None
    folded = False
    while everybody.images < pace.most:
        began = time.monotonic()
        page = await bounded(read_model.page(None, Filters(), limit=_PAGE, beyond=beyond), pace.timeout_s)
        for record in page:
            everybody.add(record)
            if record.owner in by_owner or len(by_owner) < _MAX_OWNERS:
                by_owner.setdefault(record.owner, Totals()).add(record)
            else:
                folded = True
        if len(page) < _PAGE:
            return Records(everybody, by_owner, not folded, now())
        beyond = page[-1].image_id
        await pace.breathe(began)
    return Records(everybody, by_owner, False, now())


async def count_objects(files: FileStore, pace: Pace) -> Objects:
    """Walk what is stored, kind by kind, each up to the same bound."""
    kinds: dict[str, tuple[int, int]] = {}
    complete = True
    for kind, prefix in KINDS.items():
        count = size = 0
        began = time.monotonic()
        walk = aiter(files.list(prefix))
        while (info := await bounded(anext(walk, None), pace.timeout_s)) is not None:
            count, size = count + 1, size + info.size
            if count >= pace.most:
                complete = False
                break
            if count % _BREATH == 0:
                await pace.breathe(began)
                began = time.monotonic()
        kinds[kind] = (count, size)
    return Objects(kinds, complete, now())
