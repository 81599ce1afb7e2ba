"""Recording: a fact into its image's record in the read model, and how the image ended, if it did."""

from __future__ import annotations

import math
from contextlib import suppress
from datetime import datetime

from pydantic import JsonValue

from agents.core.merge import Learned, decide, learn, outranks, to_blame, unless_annotated
from agents.indexing.fact_history import entry_of, keep_short
from agents.indexing.record_annotations import begun
from schemas.events.envelope import now
from schemas.events.facts import Fact
from schemas.events.outcomes import ImageCompleted, ImageFailed, ImageRejected, Outcome
from schemas.values import ErrorCode, ImageState, StageState
from streams.errors import Malformed
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.read_model.records import DIMENSIONS, ImageRecord, StageRecord
from streams.telemetry import metrics


async def record(fact: Fact, read_model: ReadModel, erasures: Tombstones) -> ImageRecord | None:
    """Write what a fact says; return the record as it then is.

    None if the fact is not to be written: its generation is over, the image is deleted, or it is another owner's.
    Raises Malformed for a vector that is none.
    """
    learned = _learned(fact)
    known = await begun(fact, read_model, erasures)
    if known is None or not _writable(fact, known):
        return None
    old, entry = known.stages.get(learned.stage), entry_of(fact, learned.state, learned.code)
    if outranks(learned.state, old.state if old else None, run=fact.run, known_run=old.run if old else 0):
        patch: dict[str, JsonValue] = {**unless_annotated(learned.keys, known.revision), "updated_at": now()}
        stages = _stages(fact, learned, known)
        await read_model.merge(
            fact.image_id, fact.generation, patch, stages=stages, history=entry, vector=learned.vector
        )
        known = await read_model.get(fact.image_id)
    else:
        await read_model.merge(fact.image_id, fact.generation, {}, history=entry)
    if old is not None:  # else there are as many entries as stages
        await keep_short(fact.image_id, fact.generation, read_model)
    return known if known is not None and _writable(fact, known) else None


async def conclude(fact: Fact, known: ImageRecord, read_model: ReadModel) -> Outcome | None:
    """Return the outcome if this fact ended the image, and write down that it did.

    A fact that comes again says its outcome again; any other fact of an image that has ended says nothing. An image
    that failed and is being mended is in process again.
    """
    states = {name: stage.state for name, stage in known.stages.items()}
    state = decide(known.required, states)
    if state is known.state:
        return _outcome(fact, known) if known.finished_by == fact.id else None
    ended = state is not ImageState.PROCESSING
    blamed = to_blame(state, known.required, states)
    blame = known.stages[blamed] if blamed else None
    finished = now()
    changes: dict[str, JsonValue] = {
        "state": state.value,
        "finished_at": finished if ended else None,
        "finished_by": fact.id if ended else None,
        "updated_at": finished,
        "error_code": (blame.reason or ErrorCode.INTERNAL_ERROR.value) if blame else None,
        "error_message": (blame.message or "") if blame else None,
    }
    await read_model.merge(fact.image_id, fact.generation, changes)
    if not ended:
        return None
    if known.state is ImageState.PROCESSING:
        # A later generation began long after the image was accepted.
        _count(state, known.submitted_at if known.generation == 1 else None, finished)
    return _outcome(fact, ImageRecord.model_validate({**known.model_dump(), **changes}))


def _learned(fact: Fact) -> Learned:
    try:
        learned = learn(fact)
    except ValueError as error:
        raise Malformed(f"vector: {error}") from error
    if learned.vector is not None:
        norm = math.hypot(*learned.vector)
        if len(learned.vector) != DIMENSIONS or not math.isfinite(norm) or norm == 0:
            raise Malformed(f"vector: not {DIMENSIONS} finite numbers with a direction")
    return learned


def _writable(fact: Fact, known: ImageRecord) -> bool:
    ours = known.owner == fact.owner and known.generation == fact.generation
    return ours and not known.deleted and known.state is not ImageState.DELETED


def _stages(fact: Fact, learned: Learned, known: ImageRecord) -> dict[str, StageRecord]:
    found = {
        name: StageRecord(state=StageState.DONE)
        for name in learned.also_done
        if name not in known.stages or known.stages[name].state is not StageState.DONE
    }
    found[learned.stage] = StageRecord(
        state=learned.state,
        run=fact.run,
        version=fact.report.version,
        attempts=fact.report.attempts,
        duration_ms=fact.report.duration_ms,
        reused=fact.report.reused,
        reason=learned.code,
        message=learned.message,
        result=learned.result or fact.report.result,
        finished_at=fact.occurred_at,
    )
    return found


def _outcome(fact: Fact, known: ImageRecord) -> Outcome:
    said = {
        "image_id": known.image_id,
        "owner": known.owner,
        "generation": known.generation,
        "profile": fact.profile,
        "stages": {name: stage.state for name, stage in known.stages.items()},
    }
    kind = {ImageState.REJECTED: ImageRejected, ImageState.FAILED: ImageFailed}.get(known.state)
    if kind is None:
        return ImageCompleted.model_validate(said)
    return kind.model_validate({**said, "code": known.error_code, "message": known.error_message or ""})


def _count(state: ImageState, submitted_at: str | None, finished_at: str) -> None:
    metrics.IMAGES.labels(state.value).inc()
    with suppress(ValueError, TypeError):  # another service wrote no time, or none with a zone: nothing to measure
        seconds = datetime.fromisoformat(finished_at) - datetime.fromisoformat(submitted_at or "")
        metrics.IMAGE_SECONDS.labels(state.value).observe(max(0.0, seconds.total_seconds()))
