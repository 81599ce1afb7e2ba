"""The janitor removes objects, results and originals that were stored for an image after its deletion.

A worker that processes an image during its deletion may write until its last try ends. After that time, the horizon,
the janitor searches once more, removes the tombstone from the read model and finishes the erasure. It also scans all
objects, one page per sweep, for those of outdated generations and runs and those without an image. The positions of
its scans are stored, so that a restart does not begin again.
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
from agents.maintenance.ended_deletions import EndedDeletions
from agents.maintenance.expired_idempotency_keys import ExpiredKeys
from agents.maintenance.object_scan import ObjectScan
from agents.maintenance.orphaned_references import Abandoned
from agents.maintenance.stored_positions import StoredPositions
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
_KEYS_PER_SWEEP = 500  # each key is read


class JanitorSettings(Group):
    """What the janitor may remove, and when; DARKROOM_JANITOR__…"""

    # The delay tiers (2 130 s) and four rounds of the longest deadline (220 s) make 3 010 s.
    horizon_s: float = Field(3600.0, ge=0, description="seconds after which no worker processes a deleted image")
    erasures_per_sweep: int = Field(500, ge=1, description="erasures finished in one sweep at most")
    objects_per_sweep: int = Field(2000, ge=1, description="objects examined in one sweep; the next one continues")
    remove_orphans: bool = Field(True, description="remove objects without an image, when they are old enough")
    orphan_age_s: float = Field(
        45 * 86_400.0, ge=0, description="age of such objects; longer than Kafka retains any event that may name them"
    )


class DeadLetterEraser(Protocol):
    """Closes dead letters (streams.retries.dead_letters.DeadLetterStore)."""

    async def erase(self, image_ids: Collection[str]) -> Mapping[str, int]:
        """Close the dead letters of deleted images permanently; return their number per image."""


@dataclass(slots=True)
class SweepReport:
    """What a sweep found and, unless it was a dry run, removed."""

    dry_run: bool
    finished: int = 0  # erasures after whose horizon nothing can be written
    waiting: int = 0  # erasures within their horizon
    overdue: int = 0  # deletions accepted longer ago than the horizon and not done: the reconciler sends them again
    taken_back: int = 0  # deletions that were never accepted
    late: Removed = field(default_factory=Removed)  # removed after their image was deleted
    outdated: int = 0  # objects of earlier generations and runs
    orphans: int = 0  # objects without an image
    orphans_removed: int = 0
    abandoned: int = 0  # references and originals of uploads that were never accepted, references of erased images
    expired_keys: int = 0  # of requests that may no longer be repeated
    unfinished: int = 0  # objects of resumable and direct uploads that have ended
    ended_deletions: int = 0  # marks of deletions that are done or were never accepted
    looked_at: int = 0  # objects


@dataclass(frozen=True, slots=True)
class _Relevance:
    """The newest outdated generation of an image's objects, and whether the image is known.

    Of the current generation, objects of runs before the newest run that the record names are outdated too.
    """

    outdated_generation: int
    deleted: bool = False
    known: bool = True
    named: frozenset[str] = frozenset()

    def is_outdated(self, info: ObjectInfo) -> bool:
        """Return whether the object will never be read again."""
        if _generation_of(info.key) <= self.outdated_generation:
            return True
        return info.key not in self.named and _run_of(info.key) < max(map(_run_of, self.named), default=0)


class Janitor:
    """Sweeps the object store; its only state is the scans' positions. Calls raise DependencyUnavailable."""

    def __init__(
        self,
        files: FileStore,
        read_model: ReadModel,
        settings: JanitorSettings,
        *,
        letters: DeadLetterEraser | None = None,
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
        self._ended_deletions = EndedDeletions(files, read_model)
        self._objects = ObjectScan(files, _ROOT)
        self._positions = StoredPositions(files, "janitor")

    async def sweep(self, *, dry_run: bool = False) -> SweepReport:
        """Finish the erasures that are due and examine the next page of objects. A dry run only counts."""
        report = SweepReport(dry_run)
        for name, position in (await self._positions.load() or {}).items():
            if (scan := self._scans().get(name)) is not None:
                scan.position = position
        due = await self._due(report)
        letters: Mapping[str, int] = {}
        if due and not dry_run and self._letters is not None:
            letters = await self._letters.erase({erasure.image_id for erasure in due})
        for erasure in due:
            await self._finish(erasure, letters.get(erasure.image_id), report)
        await self._examine_page(report)
        pages = self._settings.objects_per_sweep
        report.abandoned = await self._abandoned.note_late_references(page_size=pages, dry_run=dry_run)
        report.expired_keys = await self._expired_keys.remove(
            now=self._clock(), page_size=min(pages, _KEYS_PER_SWEEP), dry_run=dry_run
        )
        report.unfinished = await self._unfinished.remove(
            older_than=self._clock() - self._settings.horizon_s, page_size=pages, dry_run=dry_run
        )
        report.ended_deletions = await self._ended_deletions.remove(
            now=self._clock(), horizon_s=self._settings.horizon_s, page_size=pages, dry_run=dry_run
        )
        if self._settings.remove_orphans:
            report.abandoned += await self._abandoned.remove(
                older_than=self._clock() - self._settings.orphan_age_s,
                page_size=self._settings.objects_per_sweep,
                dry_run=dry_run,
            )
        if not dry_run:
            await self._positions.store({name: scan.position for name, scan in self._scans().items()})
        return report

    def _scans(self) -> dict[str, ObjectScan]:
        parts = (self._abandoned, self._expired_keys, self._unfinished, self._ended_deletions)
        return {_ROOT: self._objects} | {name: scan for part in parts for name, scan in part.scans().items()}

    async def _due(self, report: SweepReport) -> list[Erasure]:
        before, due = self._clock() - self._settings.horizon_s, list[Erasure]()
        async for image_id in self._erasures.unfinished():
            erasure = await self._erasures.get(image_id)
            if erasure is None:
                if not report.dry_run:
                    await self._erasures.remove_marks(image_id, before=before)
            elif erasure.erased_at is None:
                if _seconds(erasure.requested_at) <= before:
                    await self._check_unfinished(erasure, report)
            elif _seconds(erasure.erased_at) <= before:
                due.append(erasure)
            else:
                report.waiting += 1
            if len(due) == self._settings.erasures_per_sweep:
                break
        return due

    async def _check_unfinished(self, erasure: Erasure, report: SweepReport) -> None:
        """Count a deletion that is not done; revoke one whose request failed before anything was accepted or hidden."""
        receipts = await receipts_of(erasure.image_id, erasure.generation, self._files)
        hidden = any(receipt is not None and receipt.kind is ReceiptKind.DELETE for receipt in receipts.values())
        if hidden or erasure.certain_at is not None:
            report.overdue += 1
            return
        report.taken_back += 1
        if not report.dry_run:
            await self._erasures.cancel(erasure.image_id, erasure.generation)

    async def _finish(self, erasure: Erasure, letters: int | None, report: SweepReport) -> None:
        image_id, owner, generation = erasure.image_id, erasure.owner, erasure.generation
        noted = await self._erasures.noted_hashes(image_id)
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

    async def _examine_page(self, report: SweepReport) -> None:
        """Examine the next page of objects under images/."""
        page = await self._objects.page(self._settings.objects_per_sweep)
        report.looked_at = len(page)
        known, orphans = 0, list[ObjectInfo]()
        for image_id, objects in groupby(page, _image_of):
            relevance = await self._relevance_of(image_id)
            known += relevance.known
            if relevance.known:
                await self._remove_outdated(relevance, list(objects), report)
            else:
                orphans.extend(info for info in objects if self._is_older(info, self._settings.horizon_s))
        await self._remove_orphans(orphans, known, report)
        if not report.dry_run:
            self._objects.advance()

    async def _relevance_of(self, image_id: str) -> _Relevance:
        if not _ID.match(image_id):
            return _Relevance(outdated_generation=0, known=False)
        record = await self._read_model.get(image_id)
        if record is not None and not record.deleted:
            refs = (*record.sanitized(), *(rendition.object for rendition in record.renditions))
            named = frozenset(ref.key for ref in refs)
            return _Relevance(outdated_generation=record.generation - 1, named=named)
        erasure = await self._erasures.get(image_id)
        if erasure is not None and erasure.certain_at is not None:
            return _Relevance(outdated_generation=erasure.generation, deleted=True)
        if record is not None:
            return _Relevance(outdated_generation=record.generation, deleted=True)
        return _Relevance(outdated_generation=0, known=erasure is not None or await has_receipt(self._files, image_id))

    async def _remove_outdated(
        self, relevance: _Relevance, objects: Collection[ObjectInfo], report: SweepReport
    ) -> None:
        for info in objects:
            if not relevance.is_outdated(info) or not self._is_older(info, self._settings.horizon_s):
                continue
            if relevance.deleted:
                report.late += Removed(objects=1)
            else:
                report.outdated += 1
            if not report.dry_run:
                await self._files.delete(info.key)
                metrics.LATE_REMOVED.labels("object" if relevance.deleted else "outdated").inc()

    async def _remove_orphans(self, orphans: list[ObjectInfo], known: int, report: SweepReport) -> None:
        report.orphans = len(orphans)
        if not orphans:
            return
        log.warning("objects without an image", count=len(orphans), first=orphans[0].key)
        if len({_image_of(info) for info in orphans}) > known:
            # More orphaned images than known ones: this is probably another installation's read model.
            log.error("more orphaned images than known ones; wrong read model? Removal skipped")
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
    """Return the image named by a key under images/, '' if there is none."""
    parts = info.key.split("/")
    return parts[2] if len(parts) > 3 else ""


def _generation_of(key: str) -> int:
    """Return the generation a key names; a key without one is never outdated."""
    parts = key.split("/")
    known = len(parts) > 4 and parts[3].isascii() and parts[3].isdigit()
    return int(parts[3]) if known else 1 << 62


def _run_of(key: str) -> int:
    """Return the run a key names, 0 for the first run."""
    parts = key.split("/")
    named = parts[4].removeprefix("r") if len(parts) > 5 and parts[4].startswith("r") else ""
    return int(named) if named.isascii() and named.isdigit() else 0


def _count_late(counts: Removed) -> None:
    for kind, count in (("object", counts.objects), ("original", counts.originals), ("result", counts.results)):
        metrics.LATE_REMOVED.labels(kind).inc(count)
