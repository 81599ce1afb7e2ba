"""The janitor removes what came late: objects, results and originals stored for an image after it was deleted.

A worker that had an image in its hands when it was deleted may write for as long as its tries last. When that time,
the horizon, is over, the janitor looks once more, takes the tombstone out of the read model and finishes the erasure.
Beside that it walks all objects, a page per sweep, for such as belong to a generation or a run that is over, or to no
image.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from itertools import groupby
from typing import Protocol

import structlog
from pydantic import Field

from agents.indexing.erase_image import belongings, receipts_of, remove
from agents.maintenance.expired_idempotency_keys import ExpiredKeys
from agents.maintenance.object_scan import ObjectScan
from agents.maintenance.orphaned_references import Abandoned
from agents.maintenance.unfinished_uploads import Unfinished
from schemas.stored.erasures import Erasure, Removed
from schemas.stored.receipts import ReceiptKind
from schemas.values import ID_PATTERN
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.object_store.receipts import has_receipt
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.settings import Group
from streams.telemetry import metrics

log = structlog.get_logger(__name__)

_ID = re.compile(ID_PATTERN)
_ROOT = "images/"
_KEYS_PER_SWEEP = 500  # each is read


class JanitorSettings(Group):
    """What the janitor may remove, and when; DARKROOM_JANITOR__…"""

    # The delay tiers (2 130 s) and four rounds of the longest deadline (180 s) make 2 850 s.
    horizon_s: float = Field(3600.0, ge=0, description="seconds after which nobody works on a deleted image any more")
    erasures_per_sweep: int = Field(500, ge=1, description="erasures finished in one sweep at most")
    objects_per_sweep: int = Field(2000, ge=1, description="objects looked at in one sweep; the next one goes on there")
    remove_orphans: bool = Field(True, description="remove objects that belong to no image, when they are old enough")
    orphan_age_s: float = Field(
        45 * 86_400.0, ge=0, description="age of such objects; longer than Kafka keeps any event that may speak of them"
    )


class Letters(Protocol):
    """Whoever has the dead letters (streams.retries.dead_letters.DeadLetterStore)."""

    async def erase(self, image_ids: Collection[str]) -> Mapping[str, int]:
        """Close the letters of deleted images for good; return how many there are of each."""


@dataclass(slots=True)
class SweepReport:
    """What a sweep found and, unless it was a dry run, did."""

    dry_run: bool
    finished: int = 0  # erasures after which nothing can come late any more
    waiting: int = 0  # erasures whose horizon is not over
    overdue: int = 0  # deletions accepted longer ago than the horizon, and not done: the reconciler asks again
    taken_back: int = 0  # deletions that were never accepted
    late: Removed = field(default_factory=Removed)  # removed after their image was deleted
    outdated: int = 0  # objects of generations and runs that are over
    orphans: int = 0  # objects that belong to no image
    orphans_removed: int = 0
    abandoned: int = 0  # claims and originals of uploads that were never accepted, claims of images long erased
    expired_keys: int = 0  # of requests that may not be sent again any more
    unfinished: int = 0  # objects of resumable and direct uploads that are over
    looked_at: int = 0  # objects


@dataclass(frozen=True, slots=True)
class _Standing:
    """What is known of an image's objects: up to which generation they are over, and whether anybody knows them.

    Of the generation that is not over, objects of runs before the newest one the record names are over too.
    """

    over: int
    deleted: bool = False
    known: bool = True
    named: frozenset[str] = frozenset()

    def is_over(self, info: ObjectInfo) -> bool:
        """Say whether nobody will ask for an object again."""
        if _generation_of(info.key) <= self.over:
            return True
        return info.key not in self.named and _run_of(info.key) < max(map(_run_of, self.named), default=0)


class Janitor:
    """Sweeps. Keeps, between sweeps, only where it stands in the walk. Calls raise DependencyUnavailable."""

    def __init__(
        self,
        files: FileStore,
        read_model: ReadModel,
        settings: JanitorSettings,
        *,
        letters: Letters | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._files = files
        self._read_model = read_model
        self._settings = settings
        self._letters = letters
        self._clock = clock
        self._erasures = Tombstones(files)
        self._abandoned = Abandoned(files, read_model)
        self._unfinished = Unfinished(files)
        self._expired_keys = ExpiredKeys(files)
        self._objects = ObjectScan(files, _ROOT)

    async def sweep(self, *, dry_run: bool = False) -> SweepReport:
        """Finish the erasures that are due, and walk the next page of objects. A dry run only counts."""
        report = SweepReport(dry_run)
        due = await self._due(report)
        letters: Mapping[str, int] = {}
        if due and not dry_run and self._letters is not None:
            letters = await self._letters.erase({erasure.image_id for erasure in due})
        for erasure in due:
            await self._finish(erasure, letters.get(erasure.image_id), report)
        await self._walk(report)
        pages = self._settings.objects_per_sweep
        report.abandoned = await self._abandoned.note_late_claims(page_size=pages, dry_run=dry_run)
        report.expired_keys = await self._expired_keys.remove(
            now=self._clock(), page_size=min(pages, _KEYS_PER_SWEEP), dry_run=dry_run
        )
        report.unfinished = await self._unfinished.remove(
            older_than=self._clock() - self._settings.horizon_s, page_size=pages, dry_run=dry_run
        )
        if self._settings.remove_orphans:
            report.abandoned += await self._abandoned.remove(
                older_than=self._clock() - self._settings.orphan_age_s,
                page_size=self._settings.objects_per_sweep,
                dry_run=dry_run,
            )
        return report

    async def _due(self, report: SweepReport) -> list[Erasure]:
        before, due = self._clock() - self._settings.horizon_s, list[Erasure]()
        async for image_id in self._erasures.unfinished():
            erasure = await self._erasures.get(image_id)
            if erasure is None:
                if not report.dry_run:
                    await self._erasures.forget_marks(image_id, before=before)
            elif erasure.erased_at is None:
                if _seconds(erasure.requested_at) <= before:
                    await self._unanswered(erasure, report)
            elif _seconds(erasure.erased_at) <= before:
                due.append(erasure)
            else:
                report.waiting += 1
            if len(due) == self._settings.erasures_per_sweep:
                break
        return due

    async def _unanswered(self, erasure: Erasure, report: SweepReport) -> None:
        """Count a deletion nobody has done; take back one whose request broke off, with nothing accepted or hidden."""
        receipts = await receipts_of(erasure.image_id, erasure.generation, self._files)
        hidden = any(receipt is not None and receipt.kind is ReceiptKind.DELETE for receipt in receipts.values())
        if hidden or erasure.certain_at is not None:
            report.overdue += 1
            return
        report.taken_back += 1
        if not report.dry_run:
            await self._erasures.take_back(erasure.image_id, erasure.generation)

    async def _finish(self, erasure: Erasure, letters: int | None, report: SweepReport) -> None:
        image_id, owner, generation = erasure.image_id, erasure.owner, erasure.generation
        noted = await self._erasures.noted(image_id)
        late = await belongings(image_id, owner, generation, noted, self._read_model, self._files)
        late.receipts = list(await receipts_of(image_id, generation, self._files))
        counts = late.counts()
        report.late += counts
        report.finished += 1
        if report.dry_run:
            return
        await remove(late, image_id, owner, self._files)
        for key in late.receipts:
            await self._files.delete(key)
        _count_late(counts)
        await self._read_model.purge(image_id, generation)
        removed = erasure.removed + counts
        if letters is not None:
            removed = removed.model_copy(update={"dead_letters": letters})
        await self._erasures.finish(erasure, removed, noted)
        metrics.ERASURES_FINISHED.inc()

    async def _walk(self, report: SweepReport) -> None:
        """Look at the next page of objects under images/."""
        page = await self._objects.page(self._settings.objects_per_sweep)
        report.looked_at = len(page)
        known, orphans = 0, list[ObjectInfo]()
        for image_id, objects in groupby(page, _image_of):
            standing = await self._standing(image_id)
            known += standing.known
            if standing.known:
                await self._remove_outdated(standing, list(objects), report)
            else:
                orphans.extend(info for info in objects if self._is_older(info, self._settings.horizon_s))
        await self._remove_orphans(orphans, known, report)
        if not report.dry_run:
            self._objects.go_on()

    async def _standing(self, image_id: str) -> _Standing:
        if not _ID.match(image_id):
            return _Standing(over=0, known=False)
        record = await self._read_model.get(image_id)
        if record is not None and not record.deleted:
            refs = (record.master, *(rendition.object for rendition in record.renditions))
            return _Standing(over=record.generation - 1, named=frozenset(ref.key for ref in refs if ref is not None))
        erasure = await self._erasures.get(image_id)
        if erasure is not None and erasure.certain_at is not None:
            return _Standing(over=erasure.generation, deleted=True)
        if record is not None:
            return _Standing(over=record.generation, deleted=True)
        return _Standing(over=0, known=erasure is not None or await has_receipt(self._files, image_id))

    async def _remove_outdated(self, standing: _Standing, objects: Collection[ObjectInfo], report: SweepReport) -> None:
        for info in objects:
            if not standing.is_over(info) or not self._is_older(info, self._settings.horizon_s):
                continue
            if standing.deleted:
                report.late += Removed(objects=1)
            else:
                report.outdated += 1
            if not report.dry_run:
                await self._files.delete(info.key)
                metrics.LATE_REMOVED.labels("object" if standing.deleted else "outdated").inc()

    async def _remove_orphans(self, orphans: list[ObjectInfo], known: int, report: SweepReport) -> None:
        report.orphans = len(orphans)
        if not orphans:
            return
        log.warning("objects that belong to no image", count=len(orphans), first=orphans[0].key)
        if len({_image_of(info) for info in orphans}) > known:
            # More strangers than images: then it is the read model that does not know what it should.
            log.error("most objects belong to no image: is this the right read model? Nothing is removed")
            return
        for info in orphans:
            if self._settings.remove_orphans and self._is_older(info, self._settings.orphan_age_s):
                report.orphans_removed += 1
                if not report.dry_run:
                    await self._files.delete(info.key)

    def _is_older(self, info: ObjectInfo, seconds: float) -> bool:
        return info.modified <= self._clock() - seconds


def _seconds(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def _image_of(info: ObjectInfo) -> str:
    """Return the image a key under images/ names, '' if it names none."""
    parts = info.key.split("/")
    return parts[2] if len(parts) > 3 else ""


def _generation_of(key: str) -> int:
    """Return the generation a key names; one that names none is never over."""
    parts = key.split("/")
    known = len(parts) > 4 and parts[3].isascii() and parts[3].isdigit()
    return int(parts[3]) if known else 1 << 62


def _run_of(key: str) -> int:
    """Return the run a key names, 0 for the first."""
    parts = key.split("/")
    named = parts[4].removeprefix("r") if len(parts) > 5 and parts[4].startswith("r") else ""
    return int(named) if named.isascii() and named.isdigit() else 0


def _count_late(counts: Removed) -> None:
    for kind, count in (("object", counts.objects), ("original", counts.originals), ("result", counts.results)):
        metrics.LATE_REMOVED.labels(kind).inc(count)
