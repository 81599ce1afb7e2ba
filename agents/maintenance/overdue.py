"""Which images are unfinished, what each waits for, and the event to resend. Pure: no I/O, no clock.

An image is known by its newest receipt, its record, or both. A stage whose event became a dead letter has a `failed`
fact and has ended. A rebuilt event has the id of the original one, so that sending it again is harmless.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from agents.core.merge import FETCHER, SANITIZER, decide
from schemas.events.envelope import Event
from schemas.events.facts import DeletionRequested
from schemas.events.intake import SUBMISSION, FetchRequested, ImageFetched, ImageUploaded
from schemas.stored.erasures import Erasure
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ANALYSIS_STAGES, ImageState, Lane, ObjectRef, Profile, StageState, made_at
from streams.operations.rerun_events import work_of
from streams.read_model.records import ImageRecord

INDEXER, RESIZER = "indexer", "resizer"
_ENDED = {StageState.DONE, StageState.SKIPPED, StageState.REJECTED, StageState.FAILED}


class Reason(StrEnum):
    """Why an image is unfinished."""

    NO_FACT = "no-fact"  # accepted, but no stage has reported
    STAGE_MISSING = "stage-missing"  # a required stage has not ended
    NO_END = "no-end"  # every stage has ended, the image has not
    NOT_DELETED = "not-deleted"  # its deletion was accepted and not done
    OBJECT_MISSING = "object-missing"  # completed, but an object is missing


@dataclass(frozen=True, slots=True)
class Waiting:
    """One pending piece of work of an image: agent, reason, start (unix seconds)."""

    agent: str
    reason: Reason
    since: float
    bulk: bool = False  # it arrived in the bulk lane, where it may wait for hours


def unfinished(
    record: ImageRecord | None, receipt: Receipt | None, erasure: Erasure | None = None
) -> tuple[Waiting, ...]:
    """Return what an image waits for, () if it has ended; `receipt` is its newest one."""
    if receipt is not None and record is not None and receipt.generation < record.generation:
        receipt = None  # superseded by a newer run
    # An uncertain erasure may have been answered with 503; if it was accepted, its receipt exists and is checked below.
    certain = erasure is not None and erasure.certain_at is not None
    if erasure is not None and certain and (record is None or record.generation <= erasure.generation):
        requested = _seconds(erasure.requested_at) or made_at(erasure.image_id)
        return () if erasure.erased_at else (Waiting(INDEXER, Reason.NOT_DELETED, requested),)
    if receipt is not None and receipt.kind is ReceiptKind.DELETE:
        done = record is not None and record.deleted
        return () if done else (Waiting(INDEXER, Reason.NOT_DELETED, accepted_at(receipt)),)
    if receipt is not None and (record is None or record.generation < receipt.generation):
        bulk = receipt.lane is Lane.BULK or receipt.kind is ReceiptKind.REPROCESS
        return (Waiting(_first_agent(receipt), Reason.NO_FACT, accepted_at(receipt), bulk),)
    return _unfinished_run(record, receipt) if record is not None and not record.deleted else ()


def lost(record: ImageRecord, existing: Collection[str]) -> dict[str, tuple[ObjectRef, ...]]:
    """Return the objects of a completed image that are not among the existing keys, by the stage that makes them."""
    if record.state is not ImageState.COMPLETED or record.deleted:
        return {}
    named = {
        SANITIZER: record.sanitized(),
        RESIZER: tuple(rendition.object for rendition in record.renditions),
    }
    found = {stage: tuple(ref for ref in refs if ref.key not in existing) for stage, refs in named.items()}
    return {stage: refs for stage, refs in found.items() if refs}


def event_to_resend(
    waiting: Waiting, record: ImageRecord | None, receipt: Receipt | None, erasure: Erasure | None = None
) -> Event | None:
    """Return the event that makes the waited-for agent do its work, None if it cannot be rebuilt."""
    if waiting.agent == INDEXER:
        return _deletion(record, receipt, erasure)
    if receipt is not None and record is not None and receipt.generation != record.generation:
        receipt, record = (None, record) if receipt.generation < record.generation else (receipt, None)
    if waiting.agent in (FETCHER, SANITIZER):
        return _arrival(waiting.agent, record, receipt)
    if waiting.agent in ANALYSIS_STAGES and record is not None:
        known = record.stages.get(waiting.agent)
        run = known.run if known is not None else 0
        return work_of(record, run, receipt.profile if receipt is not None else None)
    return None


def accepted_at(known: ImageRecord | Receipt) -> float:
    """Return when a run of an image was accepted, unix seconds: its submission time, else the time in its id."""
    return _seconds(known.submitted_at) or made_at(known.image_id)


def _unfinished_run(record: ImageRecord, receipt: Receipt | None) -> tuple[Waiting, ...]:
    since = _seconds(record.updated_at) or accepted_at(record)
    if record.state is ImageState.DELETED:
        return (Waiting(INDEXER, Reason.NOT_DELETED, since),)
    if record.state is not ImageState.PROCESSING:
        return ()
    states = {name: stage.state for name, stage in record.stages.items()}
    if decide(record.required, states) is not ImageState.PROCESSING:
        return (Waiting(_agent_with_last_fact(record, receipt), Reason.NO_END, since),)
    if SANITIZER not in record.stages:
        return (Waiting(_first_agent(receipt), Reason.STAGE_MISSING, since),)
    missing = (stage for stage in record.required if states.get(stage) not in _ENDED)
    return tuple(Waiting(stage, Reason.STAGE_MISSING, since) for stage in missing)


def _arrival(agent: str, record: ImageRecord | None, receipt: Receipt | None) -> Event | None:
    """Return the event with which an image arrives, rebuilt from its receipt, else from its record."""
    if agent == FETCHER:
        if receipt is None or receipt.kind is not ReceiptKind.FETCH or receipt.url is None:
            return None
        return FetchRequested(**_common(receipt, receipt.profile), url=receipt.url)
    run = record.stages[SANITIZER].run if record is not None and SANITIZER in record.stages else 0
    if receipt is not None and receipt.original is not None:
        submitted = receipt.first_submitted_at or receipt.submitted_at
        fields = {
            **_common(receipt, receipt.profile),
            "original": receipt.original,
            "run": run,
            "submitted_at": submitted,
        }
        return ImageFetched(**fields, url=receipt.url) if receipt.url else ImageUploaded(**fields)
    if record is not None and record.original is not None:
        profile = receipt.profile if receipt is not None else record.profile()
        fields = {**_common(record, profile), "original": record.original, "run": run}
        return ImageFetched(**fields, url=record.source_url) if record.source_url else ImageUploaded(**fields)
    return None


def _deletion(record: ImageRecord | None, receipt: Receipt | None, erasure: Erasure | None) -> Event | None:
    for deletion in (erasure, receipt if receipt is not None and receipt.kind is ReceiptKind.DELETE else None):
        if deletion is not None:
            return DeletionRequested(image_id=deletion.image_id, owner=deletion.owner, generation=deletion.generation)
    if record is None:
        return None
    return DeletionRequested(image_id=record.image_id, owner=record.owner, generation=record.generation + 1)


def _common(known: ImageRecord | Receipt, profile: Profile) -> dict[str, object]:
    fields = {name: getattr(known, name) for name in SUBMISSION}
    identity = {"image_id": known.image_id, "owner": known.owner, "generation": known.generation}
    return {**identity, "profile": profile, **fields}


def _agent_with_last_fact(record: ImageRecord, receipt: Receipt | None) -> str:
    """Return the agent whose fact, sent again, ends an image of which every stage has ended."""
    done = [name for name in ANALYSIS_STAGES if name in record.stages and record.stages[name].state is StageState.DONE]
    if SANITIZER in record.stages and record.stages[SANITIZER].state is StageState.DONE:
        return done[-1] if done else SANITIZER
    return _first_agent(receipt)


def _first_agent(receipt: Receipt | None) -> str:
    return FETCHER if receipt is not None and receipt.kind is ReceiptKind.FETCH else SANITIZER


def _seconds(text: str | None) -> float | None:
    """Return a time as unix seconds, None if absent or unreadable: another service may have written it."""
    try:
        parsed = datetime.fromisoformat(text or "")
    except ValueError:
        return None
    return (parsed if parsed.tzinfo is not None else parsed.replace(tzinfo=UTC)).timestamp()
