"""Writes a fact into its image's record in the read model, and the outcome if the fact ended the image."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime

from pydantic import JsonValue, ValidationError

from agents.core.merge import Learned, decide, learn, outranks, to_blame, unless_annotated
from agents.indexing.fact_history import entry_of
from agents.indexing.outcome_event import outcome_of
from agents.indexing.record_annotations import is_writable, update
from schemas.events.envelope import now
from schemas.events.facts import Fact, StageCompleted
from schemas.events.outcomes import Outcome
from schemas.values import ErrorCode, ImageState, Profile, StageState
from streams.errors import Malformed
from streams.object_store.keys import image_prefix, is_below
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.read_model.records import DIMENSIONS, Change, ImageRecord, StageRecord
from streams.stage import FindStage, no_stages
from streams.telemetry import metrics


async def record(
    fact: Fact, read_model: ReadModel, erasures: Tombstones, find_stage: FindStage = no_stages
) -> ImageRecord | None:
    """Write a fact, and the end of the image if it ends it; return the record, of which only PROGRESS_KEYS are read.

    None if the fact was dropped: its generation is superseded, the image is deleted, or it is another owner's.
    `find_stage` returns the stage whose result a StageCompleted carries. Raises Malformed.
    """
    learned = _learned(fact, find_stage)
    history = entry_of(fact, learned.state, learned.code)
    found: list[ImageState] = []  # the image's state, each time it was read

    def change(known: ImageRecord) -> Change | None:
        if not _writable(fact, known):
            return None
        found.append(known.state)
        old = known.stages.get(learned.stage)
        if not outranks(learned.state, old.state if old else None, run=fact.run, known_run=old.run if old else 0):
            return Change(_end(fact, known, known.stages), history=history)
        stages = _stages(fact, learned, known)
        end = _end(fact, known, {**known.stages, **stages})
        patch: dict[str, JsonValue] = {**unless_annotated(learned.keys, known.revision), "updated_at": now(), **end}
        analysis = {learned.stage: learned.analysis} if learned.analysis is not None else {}
        return Change(patch, stages, analysis, history, learned.vector)

    known = await update(fact, change, read_model, erasures)
    if known is None or not _writable(fact, known):
        return None
    if found[0] is ImageState.PROCESSING and _ended(fact, known):
        # A later generation began long after the image was accepted.
        _count(known.state, known.submitted_at if known.generation == 1 else None, known.finished_at)
    return known


async def conclude(fact: Fact, known: ImageRecord, read_model: ReadModel) -> Outcome | None:
    """Return the outcome if this fact ended the image, also when it is redelivered."""
    return await _outcome(fact, read_model) if _ended(fact, known) else None


def _ended(fact: Fact, known: ImageRecord) -> bool:
    return known.finished_by is not None and known.finished_by == fact.id  # a hash, computed last


def _end(fact: Fact, known: ImageRecord, stages: Mapping[str, StageRecord]) -> dict[str, JsonValue]:
    """Return the keys that change when an image with these stages ends; none if its state stays the same.

    A failed image that is being reprocessed is in the state processing again.
    """
    states = {name: stage.state for name, stage in stages.items()}
    state = decide(known.required, states)
    if state is known.state:
        return {}
    ended = state is not ImageState.PROCESSING
    blamed = to_blame(state, known.required, states)
    blame = stages[blamed] if blamed else None
    finished = now()
    return {
        "state": state.value,
        "finished_at": finished if ended else None,
        "finished_by": fact.id if ended else None,
        "updated_at": finished,
        "error_code": (blame.reason or ErrorCode.INTERNAL_ERROR.value) if blame else None,
        "error_message": (blame.message or "") if blame else None,
    }


async def _outcome(fact: Fact, read_model: ReadModel) -> Outcome | None:
    """Return the outcome of an ended image; None if it was deleted or superseded meanwhile."""
    ended = await read_model.get(fact.image_id)
    return outcome_of(ended, _profile_of(fact, ended)) if ended is not None and _writable(fact, ended) else None


def _profile_of(fact: Fact, known: ImageRecord) -> Profile:
    """Return the image's profile; that of a rerun's event may have other parameters and more stages."""
    return known.profile() if fact.run else fact.profile


def _learned(fact: Fact, find_stage: FindStage) -> Learned:
    if isinstance(fact, StageCompleted):
        return learn_completed(fact, find_stage)
    try:
        learned = learn(fact)
    except ValueError as error:
        raise Malformed(f"vector: {error}") from error
    if learned.vector is not None:
        norm = math.hypot(*learned.vector)
        if len(learned.vector) != DIMENSIONS or not math.isfinite(norm) or norm == 0:
            raise Malformed(f"vector: not {DIMENSIONS} finite numbers with a direction")
    return learned


def learn_completed(fact: StageCompleted, find_stage: FindStage) -> Learned:
    """Return what a stage declares to record of its result. Raises Malformed for a result its model refuses."""
    name = fact.report.stage
    try:
        stage = find_stage(name)
    except KeyError as error:
        raise Malformed(f"there is no stage {name[:64]!r} here", code=ErrorCode.UNKNOWN_EVENT) from error
    if stage.once is None or stage.record is None:
        raise Malformed(f"stage {name} declares no `record`, so its results are not read")
    try:
        result = stage.once.result.model_validate(fact.result)
    except ValidationError as error:
        raise Malformed(f"result of {name}: {str(error)[:500]}") from error
    prefix = image_prefix(fact.image_id)
    if any(not is_below(prefix, ref.key) for ref in result.objects().values()):
        raise Malformed(f"result of {name}: an object is not below {prefix}", code=ErrorCode.REFERENCE_NOT_ALLOWED)
    recorded = stage.record(result)
    public = tuple(key for key in stage.public if key in recorded)
    keys = stage.searched(result) if stage.searched is not None else {}
    return Learned(name, StageState.DONE, keys, analysis=recorded, public=public, lineage=stage.lineage)


def _writable(fact: Fact, known: ImageRecord) -> bool:
    return known.generation == fact.generation and is_writable(fact, known)


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
        public=learned.public,
        lineage=learned.lineage,
    )
    return found


def _count(state: ImageState, submitted_at: str | None, finished_at: str | None) -> None:
    metrics.IMAGES.labels(state.value).inc()
    with suppress(ValueError, TypeError):  # another service may write no time, or one without a zone
        seconds = datetime.fromisoformat(finished_at or "") - datetime.fromisoformat(submitted_at or "")
        metrics.IMAGE_SECONDS.labels(state.value).observe(max(0.0, seconds.total_seconds()))
