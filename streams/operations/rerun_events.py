"""Reruns: builds the event that reruns one stage of an image from its record, or returns the reason to skip it.

An analysis stage reruns in the same generation, so that a completed image stays completed and visible. All stages read
the sanitizer's master, so a rerun of the sanitizer is a new generation of the image.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from pydantic import ValidationError

from schemas.events.envelope import Event
from schemas.events.facts import ImageSanitized
from schemas.events.intake import SUBMISSION, ImageFetched, ImageUploaded
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.stored.results import SanitizedImage
from schemas.values import ANALYSIS_STAGES, ImageState, ObjectRef, Profile, StageReport, job_id_of
from streams.object_store.keys import receipt_key
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import read_receipt
from streams.object_store.tombstones import Tombstones
from streams.read_model.records import ImageRecord
from streams.topics import UPLOADED, retry_topic

RERUNNABLE = ("sanitizer", *ANALYSIS_STAGES)


class SkipReason(StrEnum):
    """Why an image is not rerun."""

    DELETED = "deleted"
    NOT_IN_PROFILE = "not-in-profile"  # the stage is not part of the image's profile
    IN_PROCESS = "in-process"  # the stage, or for the sanitizer the image, has not ended yet
    NO_MASTER = "no-master"  # never sanitized: nothing to analyse
    ORIGINAL_GONE = "original-gone"  # nothing to sanitize
    NEWER_RUN = "newer-run"  # a rerun requested later is done


SKIP_MESSAGES = {
    SkipReason.DELETED: "the image was deleted",
    SkipReason.NOT_IN_PROFILE: "the image's profile does not include the stage",
    SkipReason.IN_PROCESS: "the image is still in process",
    SkipReason.NO_MASTER: "the image was never sanitized",
    SkipReason.ORIGINAL_GONE: "the original no longer exists",
    SkipReason.NEWER_RUN: "a rerun requested later is done",
}


class AlreadyDone(Exception):
    """This rerun was requested or done before, as happens after an interrupted job."""


class RerunSkipped(Exception):
    """The image is not rerun, for `reason`."""

    def __init__(self, reason: SkipReason) -> None:
        super().__init__(SKIP_MESSAGES[reason])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rerun:
    """An event, and the logical topic the scheduler forwards it to."""

    event: Event
    target: str


def rerun_analysis(record: ImageRecord, stage: str, run: int) -> Rerun:
    """Return the rerun of an analysis stage. Raises RerunSkipped or AlreadyDone."""
    if record.deleted or record.state is ImageState.DELETED:
        raise RerunSkipped(SkipReason.DELETED)
    if stage not in record.required:
        raise RerunSkipped(SkipReason.NOT_IN_PROFILE)
    event = work_of(record, run)
    if event is None:
        raise RerunSkipped(SkipReason.IN_PROCESS if record.state is ImageState.PROCESSING else SkipReason.NO_MASTER)
    known = record.stages.get(stage)
    if known is None:
        raise RerunSkipped(SkipReason.IN_PROCESS)
    if known.run == run:
        raise AlreadyDone
    if known.run > run:
        raise RerunSkipped(SkipReason.NEWER_RUN)
    return Rerun(event, retry_topic(stage))


def work_of(record: ImageRecord, run: int, profile: Profile | None = None) -> ImageSanitized | None:
    """Return the work event of the analysis stages, rebuilt from the record; None if the image was never sanitized."""
    sanitizer = record.stages.get("sanitizer")
    if sanitizer is None or record.original is None:
        return None
    try:
        known = record.model_dump(include=set(SanitizedImage.model_fields), exclude_none=True)
        image = SanitizedImage.model_validate(known)
    except ValidationError:  # rejected, or a record of an older version
        return None
    return ImageSanitized(
        image_id=record.image_id,
        owner=record.owner,
        generation=record.generation,
        run=run,
        profile=profile or record.profile(),
        bucket=record.bucket,
        filename=record.filename,
        tags=record.tags,
        category=record.category,
        context=record.context,
        revision=record.revision,
        submitted_at=record.submitted_at,
        report=StageReport(
            stage="sanitizer",
            version=sanitizer.version,
            attempts=max(1, sanitizer.attempts),
            duration_ms=max(0, sanitizer.duration_ms),
            reused=sanitizer.reused,
        ),
        original=record.original,
        image=image,
        source_url=record.source_url,
    )


@dataclass(frozen=True, slots=True)
class Restarts:
    """Reruns the sanitizer: new generations, each with its receipt. Calls raise DependencyUnavailable."""

    files: FileStore

    async def restart(self, record: ImageRecord, requested_at: str) -> Rerun:
        """Return the event of a new generation, also if its receipt exists and the image's record does not show it yet.

        `requested_at`: RFC 3339 time of the request. Raises RerunSkipped or AlreadyDone.
        """
        newest = await read_receipt(self.files, job_id_of(record.image_id, record.generation + 1))
        if newest is not None and newest.kind is ReceiptKind.REPROCESS:
            return _restarted(newest)
        if record.deleted or newest is not None or await self._is_erased(record.image_id):
            raise RerunSkipped(SkipReason.DELETED)
        current = await read_receipt(self.files, job_id_of(record.image_id, record.generation))
        if current is not None and current.kind is ReceiptKind.REPROCESS and current.submitted_at >= requested_at:
            raise AlreadyDone
        if record.state is ImageState.PROCESSING:
            raise RerunSkipped(SkipReason.IN_PROCESS)
        original = record.original or (current.original if current is not None else None)
        if original is None or await self.files.stat(original.key) is None:
            raise RerunSkipped(SkipReason.ORIGINAL_GONE)
        return _restarted(await self._accept(record, original, requested_at))

    async def _accept(self, record: ImageRecord, original: ObjectRef, requested_at: str) -> Receipt:
        generation = record.generation + 1
        receipt = Receipt(
            job_id=job_id_of(record.image_id, generation),
            image_id=record.image_id,
            owner=record.owner,
            generation=generation,
            kind=ReceiptKind.REPROCESS,
            submitted_at=requested_at,
            bucket=record.bucket,
            filename=record.filename,
            tags=record.tags,
            category=record.category,
            context=record.context,
            revision=record.revision,
            profile=record.profile(),
            original=original,
            url=record.source_url,
            first_submitted_at=record.submitted_at,
        )
        key = receipt_key(receipt.job_id)
        await self.files.put(key, receipt.model_dump_json().encode(), content_type="application/json")
        if await self._is_erased(record.image_id):
            await self.files.delete(key)  # the eraser may have listed the receipts before this one existed
            raise RerunSkipped(SkipReason.DELETED)
        return receipt

    async def _is_erased(self, image_id: str) -> bool:
        return await Tombstones(self.files).get(image_id) is not None


def _restarted(receipt: Receipt) -> Rerun:
    kept = {"image_id", "owner", "generation", "profile", "original", "url", *SUBMISSION}
    fields = {name: getattr(receipt, name) for name in kept} | {"submitted_at": receipt.first_submitted_at}
    if receipt.url is not None:
        return Rerun(ImageFetched.model_validate(fields), retry_topic("sanitizer"))
    return Rerun(ImageUploaded.model_validate(fields), UPLOADED.name)
