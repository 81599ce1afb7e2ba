"""Reruns: builds the event that reruns one stage of an image from its record, or returns the reason to skip it.

An analysis stage reruns in the same generation, so that a completed image stays completed and visible. All stages read
the sanitizer's master, so a rerun of the sanitizer is a new generation of the image.

A rerun may have a profile: its parameters replace the image's, stage by stage, and stages the image never passed run in
addition. In the same generation neither changes the record's profile, which alone decides how the image ends.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from itertools import chain

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

SANITIZER = "sanitizer"
RERUNNABLE = (SANITIZER, *ANALYSIS_STAGES)


class SkipReason(StrEnum):
    """Why an image is not rerun."""

    DELETED = "deleted"
    NOT_IN_PROFILE = "not-in-profile"  # the stage is part neither of the image's profile nor of the rerun's
    IN_PROCESS = "in-process"  # the stage, or for the sanitizer the image, has not ended yet
    NO_MASTER = "no-master"  # never sanitized: nothing to analyse
    ORIGINAL_GONE = "original-gone"  # nothing to sanitize
    NEWER_RUN = "newer-run"  # a rerun requested later is done


SKIP_MESSAGES = {
    SkipReason.DELETED: "the image was deleted",
    SkipReason.NOT_IN_PROFILE: "neither the image's profile nor the rerun's includes the stage",
    SkipReason.IN_PROCESS: "the image is still in process",
    SkipReason.NO_MASTER: "the image was never sanitized",
    SkipReason.ORIGINAL_GONE: "the original no longer exists",
    SkipReason.NEWER_RUN: "a rerun requested later is done",
}


class AlreadyDone(Exception):
    """This rerun was requested or done before, as happens after an interrupted job."""


class WrongProfile(ValueError):
    """A rerun with this profile would do nothing of what `field` asks."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class RerunSkipped(Exception):
    """The image is not rerun, for `reason`."""

    def __init__(self, reason: SkipReason) -> None:
        super().__init__(SKIP_MESSAGES[reason])
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Rerun:
    """An event, and the logical topics the scheduler forwards it to."""

    event: Event
    targets: tuple[str, ...]


def check_profile(stage: str, asked: Profile | None) -> None:
    """Raise WrongProfile for parameters of a stage that a rerun of `stage` with this profile does not run."""
    if asked is None or stage == SANITIZER:
        return
    for name in asked.parameters:
        if name not in (stage, *asked.stages):
            raise WrongProfile(
                f"profile.parameters.{name}",
                f"a rerun of {stage} does not run {name}; rerun {name} itself, or add it to profile.stages for images "
                "without it",
            )


def profile_of(record: ImageRecord, asked: Profile | None = None) -> Profile:
    """Return the profile of a rerun: the image's, its stages that ran in addition, then what is asked.

    Of a stage's parameters, those asked replace all others.
    """
    own = record.profile()
    ran = (name for name in ANALYSIS_STAGES if name in record.stages)
    if asked is None:
        return Profile(stages=_once(own.stages, ran), parameters=own.parameters)
    return Profile(stages=_once(own.stages, ran, asked.stages), parameters={**own.parameters, **asked.parameters})


def rerun_analysis(record: ImageRecord, stage: str, run: int, asked: Profile | None = None) -> Rerun:
    """Return the rerun of an analysis stage, and of asked stages that the image never passed.

    Raises RerunSkipped or AlreadyDone, about `stage`, if there is nothing to run.
    """
    if record.deleted or record.state is ImageState.DELETED:
        raise RerunSkipped(SkipReason.DELETED)
    profile = profile_of(record, asked)
    event = work_of(record, run, profile)
    added = [] if asked is None else [name for name in asked.stages if name != stage and _is_new(record, name)]
    try:
        _check_due(record, stage, run, profile, sanitized=event is not None)
        due = [stage, *added]
    except (AlreadyDone, RerunSkipped):
        due = added
        if event is None or not due:
            raise
    assert event is not None  # noqa: S101 - _check_due raised otherwise
    return Rerun(event, tuple(map(retry_topic, due)))


def _check_due(record: ImageRecord, stage: str, run: int, profile: Profile, *, sanitized: bool) -> None:
    """Raise RerunSkipped or AlreadyDone unless the stage has to run again, or for the first time if it was asked."""
    if stage not in profile.stages:
        raise RerunSkipped(SkipReason.NOT_IN_PROFILE)
    if not sanitized:
        raise RerunSkipped(SkipReason.IN_PROCESS if record.state is ImageState.PROCESSING else SkipReason.NO_MASTER)
    known = record.stages.get(stage)
    if known is None:
        if stage in record.required:
            raise RerunSkipped(SkipReason.IN_PROCESS)
        return
    if known.run == run:
        raise AlreadyDone
    if known.run > run:
        raise RerunSkipped(SkipReason.NEWER_RUN)


def _is_new(record: ImageRecord, stage: str) -> bool:
    return stage in ANALYSIS_STAGES and stage not in record.required and stage not in record.stages


def _once(*names: Iterable[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(chain.from_iterable(names)))


def work_of(record: ImageRecord, run: int, profile: Profile | None = None) -> ImageSanitized | None:
    """Return the work event of the analysis stages, rebuilt from the record; None if the image was never sanitized."""
    sanitizer = record.stages.get(SANITIZER)
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
            stage=SANITIZER,
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

    async def restart(self, record: ImageRecord, requested_at: str, asked: Profile | None = None) -> Rerun:
        """Return the event of a new generation, also if its receipt exists and the image's record does not show it yet.

        `requested_at`: RFC 3339 time of the request. The new generation's profile is `profile_of` the image. Raises
        RerunSkipped or AlreadyDone.
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
        return _restarted(await self._accept(record, original, requested_at, profile_of(record, asked)))

    async def _accept(self, record: ImageRecord, original: ObjectRef, requested_at: str, profile: Profile) -> Receipt:
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
            profile=profile,
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
        return Rerun(ImageFetched.model_validate(fields), (retry_topic(SANITIZER),))
    return Rerun(ImageUploaded.model_validate(fields), (UPLOADED.name,))
