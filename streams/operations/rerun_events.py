"""Reruns: the event that makes one stage of one image run again, made of what is known of the image; or why not.

An analysis stage runs again in the same generation, so that a completed image stays completed and visible. The
sanitizer's master is what all others read, so its rerun is a new generation of the whole image.
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


class WhyNot(StrEnum):
    """Why an image is not run again."""

    DELETED = "deleted"
    NOT_IN_PROFILE = "not-in-profile"  # the image never passes that stage
    IN_PROCESS = "in-process"  # the stage, or for the sanitizer the image, has not ended: it will by itself
    NO_MASTER = "no-master"  # it was never sanitized: there is nothing to analyse
    ORIGINAL_GONE = "original-gone"  # nothing to sanitize
    NEWER_RUN = "newer-run"  # a rerun that was asked for later has been done


WHY_NOT = {
    WhyNot.DELETED: "the image was deleted",
    WhyNot.NOT_IN_PROFILE: "the image's profile leaves the stage out",
    WhyNot.IN_PROCESS: "the image is still in process",
    WhyNot.NO_MASTER: "the image was never sanitized",
    WhyNot.ORIGINAL_GONE: "the original is not there any more",
    WhyNot.NEWER_RUN: "a rerun asked for later has been done",
}


class DoneAlready(Exception):
    """This very rerun has been asked for or done: whoever was interrupted goes over some images twice."""


class NotAgain(Exception):
    """The image is not run again; `why` says the reason."""

    def __init__(self, why: WhyNot) -> None:
        super().__init__(WHY_NOT[why])
        self.why = why


@dataclass(frozen=True, slots=True)
class Rerun:
    """An event, and the logical topic it goes to when there is room."""

    event: Event
    target: str


def rerun_analysis(record: ImageRecord, stage: str, run: int) -> Rerun:
    """Return what makes an analysis stage run again. Raises NotAgain or DoneAlready."""
    if record.deleted or record.state is ImageState.DELETED:
        raise NotAgain(WhyNot.DELETED)
    if stage not in record.required:
        raise NotAgain(WhyNot.NOT_IN_PROFILE)
    event = work_of(record, run)
    if event is None:
        raise NotAgain(WhyNot.IN_PROCESS if record.state is ImageState.PROCESSING else WhyNot.NO_MASTER)
    known = record.stages.get(stage)
    if known is None:
        raise NotAgain(WhyNot.IN_PROCESS)
    if known.run == run:
        raise DoneAlready
    if known.run > run:
        raise NotAgain(WhyNot.NEWER_RUN)
    return Rerun(event, retry_topic(stage))


def work_of(record: ImageRecord, run: int, profile: Profile | None = None) -> ImageSanitized | None:
    """Return the work event of the analysis stages, rebuilt from the record; None if the image was never sanitized."""
    sanitizer = record.stages.get("sanitizer")
    if sanitizer is None or record.original is None:
        return None
    try:
        known = record.model_dump(include=set(SanitizedImage.model_fields), exclude_none=True)
        image = SanitizedImage.model_validate(known)
    except ValidationError:  # refused, or a record of another time
        return None
    return ImageSanitized(
        image_id=record.image_id,
        owner=record.owner,
        generation=record.generation,
        run=run,
        profile=profile or Profile(stages=record.required),
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
    """Reruns of the sanitizer: new generations, each with its receipt. Calls raise DependencyUnavailable."""

    files: FileStore

    async def restart(self, record: ImageRecord, asked_at: str) -> Rerun:
        """Accept a new generation of an image, or repeat one that was accepted and is not seen yet.

        `asked_at` is when the rerun was asked for. Raises NotAgain or DoneAlready.
        """
        newest = await read_receipt(self.files, job_id_of(record.image_id, record.generation + 1))
        if newest is not None and newest.kind is ReceiptKind.REPROCESS:
            return _restarted(newest)
        if record.deleted or newest is not None or await self._is_erased(record.image_id):
            raise NotAgain(WhyNot.DELETED)
        current = await read_receipt(self.files, job_id_of(record.image_id, record.generation))
        if current is not None and current.kind is ReceiptKind.REPROCESS and current.submitted_at >= asked_at:
            raise DoneAlready
        if record.state is ImageState.PROCESSING:
            raise NotAgain(WhyNot.IN_PROCESS)
        original = record.original or (current.original if current is not None else None)
        if original is None or await self.files.stat(original.key) is None:
            raise NotAgain(WhyNot.ORIGINAL_GONE)
        return _restarted(await self._promise(record, original, asked_at))

    async def _promise(self, record: ImageRecord, original: ObjectRef, asked_at: str) -> Receipt:
        generation = record.generation + 1
        receipt = Receipt(
            job_id=job_id_of(record.image_id, generation),
            image_id=record.image_id,
            owner=record.owner,
            generation=generation,
            kind=ReceiptKind.REPROCESS,
            submitted_at=asked_at,
            bucket=record.bucket,
            filename=record.filename,
            tags=record.tags,
            category=record.category,
            context=record.context,
            revision=record.revision,
            profile=Profile(stages=record.required),
            original=original,
            url=record.source_url,
            first_submitted_at=record.submitted_at,
        )
        key = receipt_key(receipt.job_id)
        await self.files.put(key, receipt.model_dump_json().encode(), content_type="application/json")
        if await self._is_erased(record.image_id):
            await self.files.delete(key)  # who erases had looked for receipts before this one was there
            raise NotAgain(WhyNot.DELETED)
        return receipt

    async def _is_erased(self, image_id: str) -> bool:
        return await Tombstones(self.files).get(image_id) is not None


def _restarted(receipt: Receipt) -> Rerun:
    kept = {"image_id", "owner", "generation", "profile", "original", "url", *SUBMISSION}
    said = {name: getattr(receipt, name) for name in kept} | {"submitted_at": receipt.first_submitted_at}
    if receipt.url is not None:
        return Rerun(ImageFetched.model_validate(said), retry_topic("sanitizer"))
    return Rerun(ImageUploaded.model_validate(said), UPLOADED.name)
