"""Merges facts into one record: what each fact adds, and the image's state. Independent of the order of facts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import JsonValue

from schemas.events.facts import (
    Fact,
    ImageEmbedded,
    ImageRefused,
    ImageResized,
    ImageSanitized,
    ObjectsDetected,
    StageFailed,
    StageSkipped,
    TextRead,
)
from schemas.events.intake import SUBMISSION, Submission
from schemas.http.history import LineageKind
from schemas.values import ErrorCode, ImageState, ObjectRef, Profile, StageState

SANITIZER, FETCHER = "sanitizer", "fetcher"
ANNOTATION = ("tags", "category", "context", "revision")  # what an owner may change later

# Of two facts about one stage of one generation the higher-ranked one wins, whatever their order: finished work stays
# finished, and a replayed dead letter can only improve the record. Of equal ranks, the later run wins.
_RANK = {
    StageState.PENDING: 0,
    StageState.FAILED: 1,
    StageState.SKIPPED: 2,
    StageState.REJECTED: 3,
    StageState.DONE: 4,
}


@dataclass(frozen=True, slots=True)
class Learned:
    """What one fact adds: keys of the record, and the state of its stage."""

    stage: str
    state: StageState
    keys: Mapping[str, JsonValue] = field(default_factory=dict)
    code: ErrorCode | None = None
    message: str | None = None
    result: ObjectRef | None = None
    vector: Sequence[float] | None = None
    also_done: tuple[str, ...] = ()  # earlier stages this fact proves to be done
    analysis: Mapping[str, JsonValue] | None = None  # what a generic stage records of its result
    public: tuple[str, ...] = ()  # the keys of `analysis` clients see
    lineage: LineageKind | None = None  # what lineage calls `analysis`


def learn(fact: Fact) -> Learned:
    """Return what a fact adds to the record. Raises ValueError for a malformed vector, KeyError without a handler."""
    return HANDLERS[type(fact)](fact)


def _learn_sanitized(fact: ImageSanitized) -> Learned:
    fetched = (FETCHER,) if fact.source_url else ()
    return Learned(fact.report.stage, StageState.DONE, _sanitized(fact), also_done=fetched)


def _learn_resized(fact: ImageResized) -> Learned:
    renditions: list[JsonValue] = [rendition.model_dump(mode="json") for rendition in fact.renditions]
    return Learned(fact.report.stage, StageState.DONE, {"renditions": renditions})


def _learn_text(fact: TextRead) -> Learned:
    keys: dict[str, JsonValue] = {"text": fact.content, "text_confidence": fact.mean_confidence}
    return Learned(fact.report.stage, StageState.DONE, keys, result=fact.result)


def _learn_objects(fact: ObjectsDetected) -> Learned:
    labels: list[JsonValue] = [*sorted({found.label for found in fact.objects})]
    keys: dict[str, JsonValue] = {"objects": [found.model_dump(mode="json") for found in fact.objects]}
    return Learned(fact.report.stage, StageState.DONE, {**keys, "labels": labels})


def _learn_vector(fact: ImageEmbedded) -> Learned:
    return Learned(fact.report.stage, StageState.DONE, {"has_vector": True}, vector=fact.vector.values())


def _learn_skip(fact: StageSkipped) -> Learned:
    return Learned(fact.report.stage, StageState.SKIPPED, code=fact.reason, message=fact.message)


def _learn_refusal(fact: ImageRefused) -> Learned:
    stage = fact.report.stage
    # Refused later, the image's submission is already recorded from ImageSanitized.
    keys = {**_submitted(fact), **_original(fact)} if stage in (SANITIZER, FETCHER) else {}
    return Learned(stage, StageState.REJECTED, keys, code=fact.code, message=fact.message)


def _learn_failure(fact: StageFailed) -> Learned:
    stage = fact.report.stage
    # Failed later, the submission is recorded already; facts of older writers and of malformed events state none.
    submitted = _submitted(fact) if stage in (SANITIZER, FETCHER) and fact.submitted_at is not None else {}
    keys = {**submitted, **_original(fact)}
    return Learned(stage, StageState.FAILED, keys, code=fact.code, message=fact.message)


HANDLERS: Mapping[type[Fact], Callable[[Any], Learned]] = {
    ImageSanitized: _learn_sanitized,
    ImageResized: _learn_resized,
    TextRead: _learn_text,
    ObjectsDetected: _learn_objects,
    ImageEmbedded: _learn_vector,
    StageSkipped: _learn_skip,
    ImageRefused: _learn_refusal,
    StageFailed: _learn_failure,
}
"""Fact type -> what it adds to the record. StageCompleted has its handler in agents.indexing.record_facts."""


def outranks(new: StageState, known: StageState | None, *, run: int = 0, known_run: int = 0) -> bool:
    """Return whether a new state of a stage replaces the known one; an equal one does.

    A rerun can only improve: if it failed, was skipped or refused, the older result stays.
    """
    return known is None or _standing(new, run) >= _standing(known, known_run)


def unless_annotated(keys: Mapping[str, JsonValue], revision: int) -> Mapping[str, JsonValue]:
    """Return the keys of a fact to write when the record is at this annotation revision.

    Submitted annotations never overwrite later ones; a rerun's submission carries the revision it repeats.
    """
    submitted = keys.get("revision", 0)
    if not revision or (isinstance(submitted, int) and submitted > revision):
        return keys
    return {name: value for name, value in keys.items() if name not in ANNOTATION}


def required_stages(profile: Profile) -> tuple[str, ...]:
    """Return the stages an image must end, in pipeline order."""
    return (SANITIZER, *(stage for stage in dict.fromkeys(profile.stages) if stage != SANITIZER))


def decide(required: Sequence[str], stages: Mapping[str, StageState]) -> ImageState:
    """Return an image's state.

    Rejected or failed while it was fetched or sanitized ends it, since no stage can follow. Otherwise it ends when
    every required stage has: failed if one failed, rejected if one rejected it, completed if all are done or skipped.
    """
    gate = stages.get(SANITIZER, StageState.PENDING)
    if gate is StageState.PENDING:
        gate = stages.get(FETCHER, StageState.PENDING)
        if gate not in (StageState.REJECTED, StageState.FAILED):
            return ImageState.PROCESSING
    if gate is StageState.REJECTED:
        return ImageState.REJECTED
    if gate is StageState.FAILED:
        return ImageState.FAILED
    ends = {stages.get(stage, StageState.PENDING) for stage in required if stage != SANITIZER}
    if StageState.PENDING in ends:
        return ImageState.PROCESSING
    if StageState.FAILED in ends:
        return ImageState.FAILED
    return ImageState.REJECTED if StageState.REJECTED in ends else ImageState.COMPLETED


def to_blame(state: ImageState, required: Sequence[str], stages: Mapping[str, StageState]) -> str | None:
    """Return the first stage that made an image end rejected or failed; None if it ended neither way."""
    guilty = {ImageState.REJECTED: StageState.REJECTED, ImageState.FAILED: StageState.FAILED}.get(state)
    order = (SANITIZER, FETCHER, *required) if SANITIZER in stages else (FETCHER, *required)
    return next((stage for stage in order if guilty is not None and stages.get(stage) is guilty), None)


def _standing(state: StageState, run: int) -> tuple[int, int, int]:
    # A rerun cannot reject an image that was accepted: there, a rejection counts as a failure.
    worth = StageState.FAILED if run and state is StageState.REJECTED else state
    return _RANK[worth], run, _RANK[state]


def _original(fact: ImageRefused | StageFailed) -> dict[str, JsonValue]:
    return {"original": fact.original.model_dump(mode="json")} if fact.original is not None else {}


def _submitted(fact: Submission) -> dict[str, JsonValue]:
    return fact.model_dump(mode="json", include=set(SUBMISSION))


def _sanitized(fact: ImageSanitized) -> dict[str, JsonValue]:
    image = fact.image.model_dump(mode="json", exclude_none=True)
    keys = (
        "master", "width", "height", "source_format", "frames", "has_alpha",
        "perceptual_hash", "dominant_colour", "palette", "thumbhash", "capture", "pages",
    )  # fmt: skip
    return {
        **_submitted(fact),
        "source_url": fact.source_url,
        "original": fact.original.model_dump(mode="json"),
        **{key: image.get(key) for key in keys},
    }
