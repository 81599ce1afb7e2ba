"""Happenings: facts and outcomes as listeners are told of them: small, public, and of one owner."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.events.envelope import Event, NotAnEvent, Record, decode
from schemas.events.facts import DeletionRequested, Fact, ImageRefused, StageFailed, StageSkipped
from schemas.events.outcomes import ImageFailed, ImageRejected, Outcome
from schemas.http.live import DeletionBegun, ImageEnded, ImageTouched, LiveEvent, StageChanged
from schemas.values import ErrorCode, ImageState, StageState, Value
from streams.topics import FACTS, OUTCOMES

TOPICS = (FACTS, OUTCOMES)
_SPOKEN_OF = tuple(kind for topic in TOPICS for kind in topic.events)
_MESSAGE = 500  # characters: another service may say more


@dataclass(frozen=True, slots=True)
class ProgressEvent:
    """One thing that happened to one image."""

    id: str  # the event's ce_id: the same thing said again has the same
    image_id: str
    owner: str
    generation: int
    name: LiveEvent
    data: Value
    ends: bool = False  # the last of its generation
    deletes: bool = False  # the image is on its way out, or gone


def progress_event_of(record: Record) -> ProgressEvent | None:
    """Return what a record of the log tells listeners; None for what is no event, or none of theirs."""
    try:
        event: Event = decode(record, _SPOKEN_OF)
    except NotAnEvent:
        return None  # the indexer sees to it
    told = _told(event)
    if told is None:
        return None
    name, data = told
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


def _told(event: Event) -> tuple[LiveEvent, Value] | None:
    match event:
        case Outcome():
            return LiveEvent(event.state), _ended(event)
        case DeletionRequested():
            said = DeletionBegun(image_id=event.image_id, job_id=event.job_id, at=event.occurred_at)
            return LiveEvent.DELETING, said
        case Fact():
            return LiveEvent.STAGE, _stage(event)
        case _:  # what its owner says of it
            touched = ImageTouched(image_id=event.image_id, job_id=event.job_id, at=event.occurred_at)
            return LiveEvent.ANNOTATED, touched


def state_of(fact: Event) -> tuple[StageState, ErrorCode | None, str | None]:
    """Return where a fact leaves its stage, with the reason and the sentence if it has any."""
    match fact:
        case StageSkipped():
            return StageState.SKIPPED, fact.reason, fact.message
        case ImageRefused():
            return StageState.REJECTED, fact.code, fact.message
        case StageFailed():
            return StageState.FAILED, fact.code, fact.message
        case _:
            return StageState.DONE, None, None


def _stage(fact: Fact) -> StageChanged:
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
        message=message[:_MESSAGE] if message else None,
        at=fact.occurred_at,
    )


def _ended(outcome: Outcome) -> ImageEnded:
    why = outcome if isinstance(outcome, ImageRejected | ImageFailed) else None
    return ImageEnded(
        image_id=outcome.image_id,
        job_id=outcome.job_id,
        status=ImageState(outcome.state),
        reason=why.code if why else None,
        message=why.message[:_MESSAGE] if why else None,
        at=outcome.occurred_at,
    )
