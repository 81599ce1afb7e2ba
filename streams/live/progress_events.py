"""Progress events: facts and outcomes as the live feed publishes them: small, public, and of one owner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import assert_never, get_args

from schemas.events.envelope import NotAnEvent, Record, decode
from schemas.events.facts import (
    DeletionRequested,
    ImageAnnotated,
    ImageEmbedded,
    ImageRefused,
    ImageResized,
    ImageSanitized,
    ObjectsDetected,
    StageCompleted,
    StageFailed,
    StageRetrying,
    StageSkipped,
    TextRead,
)
from schemas.events.outcomes import ImageCompleted, ImageDeleted, ImageFailed, ImageRejected, Outcome
from schemas.http.live import DeletionBegun, ImageEnded, ImageTouched, LiveEvent, StageChanged, StageDelayed
from schemas.values import ErrorCode, ImageState, StageState, Value
from streams.topics import FACTS, OUTCOMES

DoneFact = ImageSanitized | ImageResized | TextRead | ObjectsDetected | ImageEmbedded | StageCompleted
StageFact = DoneFact | StageSkipped | ImageRefused | StageFailed
Ended = ImageCompleted | ImageRejected | ImageFailed | ImageDeleted
Published = StageFact | StageRetrying | DeletionRequested | ImageAnnotated | Ended

TOPICS = (FACTS, OUTCOMES)
PUBLISHED: tuple[type[Published], ...] = get_args(Published)
_MAX_MESSAGE = 500  # characters; messages of other producers have no limit


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One change of one image."""

    id: str  # the event's ce_id, equal for repeats
    image_id: str
    owner: str
    generation: int
    name: LiveEvent
    data: Value
    ends: bool = False  # the last of its generation
    deletes: bool = False  # the image is being deleted, or was


def progress_event_of(record: Record) -> ProgressEvent | None:
    """Return the progress event of a record; None if it is not an event, or of a type that is not published."""
    try:
        event: Published = decode(record, PUBLISHED)
    except NotAnEvent:
        return None  # the indexer dead-letters it
    name, data = _published(event)
    return ProgressEvent(
        id=event.id,
        image_id=event.image_id,
        owner=event.owner,
        generation=event.generation,
        name=name,
        data=data,
        ends=isinstance(event, Outcome),
        deletes=name in (LiveEvent.DELETING, LiveEvent.DELETED),
    )


def _published(event: Published) -> tuple[LiveEvent, Value]:
    if isinstance(event, StageFact):
        return LiveEvent.STAGE, _stage(event)
    if isinstance(event, Ended):
        return LiveEvent(event.state), _ended(event)
    match event:
        case StageRetrying():
            return LiveEvent.RETRYING, _delayed(event)
        case DeletionRequested():
            begun = DeletionBegun(image_id=event.image_id, job_id=event.job_id, at=event.occurred_at)
            return LiveEvent.DELETING, begun
        case ImageAnnotated():
            touched = ImageTouched(image_id=event.image_id, job_id=event.job_id, at=event.occurred_at)
            return LiveEvent.ANNOTATED, touched
        case _:
            assert_never(event)


def state_of(fact: StageFact) -> tuple[StageState, ErrorCode | None, str | None]:
    """Return the state a fact gives its stage, with the error code and message if there are any."""
    if isinstance(fact, DoneFact):
        return StageState.DONE, None, None
    match fact:
        case StageSkipped():
            return StageState.SKIPPED, fact.reason, fact.message
        case ImageRefused():
            return StageState.REJECTED, fact.code, fact.message
        case StageFailed():
            return StageState.FAILED, fact.code, fact.message
        case _:
            assert_never(fact)


def _stage(fact: StageFact) -> StageChanged:
    state, reason, message = state_of(fact)
    return StageChanged(
        image_id=fact.image_id,
        job_id=fact.job_id,
        stage=fact.report.stage,
        state=state,
        attempts=fact.report.attempts,
        duration_ms=fact.report.duration_ms,
        reused=fact.report.reused,
        run=fact.run or None,
        reason=reason,
        message=message[:_MAX_MESSAGE] if message else None,
        at=fact.occurred_at,
    )


def _delayed(event: StageRetrying) -> StageDelayed:
    return StageDelayed(
        image_id=event.image_id,
        job_id=event.job_id,
        stage=event.report.stage,
        attempts=event.report.attempts,
        reason=event.code,
        message=event.message[:_MAX_MESSAGE],
        next_try_at=event.next_try_at,
        at=event.occurred_at,
    )


def _ended(outcome: Ended) -> ImageEnded:
    why = outcome if isinstance(outcome, ImageRejected | ImageFailed) else None
    return ImageEnded(
        image_id=outcome.image_id,
        job_id=outcome.job_id,
        status=ImageState(outcome.state),
        reason=why.code if why else None,
        message=why.message[:_MAX_MESSAGE] if why else None,
        at=outcome.occurred_at,
    )
