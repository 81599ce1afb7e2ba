"""Facts into one record: what each fact adds, and where the image then stands. Independent of the order of facts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

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
from schemas.values import ErrorCode, ImageState, ObjectRef, Profile, StageState

SANITIZER, FETCHER = "sanitizer", "fetcher"
ANNOTATION = ("tags", "category", "context", "revision")  # what an owner says of an image, and may say anew

# Of two facts about one stage of one generation the better one stays, whichever comes last: work that was done is
# done, and a dead letter that is replayed may only mend. Of equally good ones that of the later run stays.
_RANK = {
    StageState.PENDING: 0,
    StageState.FAILED: 1,
    StageState.SKIPPED: 2,
    StageState.REJECTED: 3,
    StageState.DONE: 4,
}


@dataclass(frozen=True, slots=True)
class Learned:
    """What one fact says: keys of the record, and where its stage stands."""

    stage: str
    state: StageState
    keys: Mapping[str, JsonValue] = field(default_factory=dict)
    code: ErrorCode | None = None
    message: str | None = None
    result: ObjectRef | None = None
    vector: Sequence[float] | None = None
    also_done: tuple[str, ...] = ()  # stages that must have done their work, or this fact could not be


def learn(fact: Fact) -> Learned:
    """Return what a fact says. Raises ValueError for a vector that is none, TypeError for a fact nobody knows."""
    stage = fact.report.stage
    match fact:
        case ImageSanitized():
            fetched = (FETCHER,) if fact.source_url else ()
            learned = Learned(stage, StageState.DONE, _sanitized(fact), also_done=fetched)
        case ImageResized():
            renditions: list[JsonValue] = [rendition.model_dump(mode="json") for rendition in fact.renditions]
            learned = Learned(stage, StageState.DONE, {"renditions": renditions})
        case TextRead():
            keys: dict[str, JsonValue] = {"text": fact.content, "text_confidence": fact.mean_confidence}
            learned = Learned(stage, StageState.DONE, keys, result=fact.result)
        case ObjectsDetected():
            learned = Learned(stage, StageState.DONE, _detected(fact))
        case ImageEmbedded():
            learned = Learned(stage, StageState.DONE, {"has_vector": True}, vector=fact.vector.values())
        case StageSkipped():
            learned = Learned(stage, StageState.SKIPPED, code=fact.reason, message=fact.message)
        case ImageRefused():
            first = stage in (SANITIZER, FETCHER)  # later ones were told by the sanitized image what its sender said
            keys = {**_submitted(fact), **_original(fact)} if first else {}
            learned = Learned(stage, StageState.REJECTED, keys, code=fact.code, message=fact.message)
        case StageFailed():
            learned = Learned(stage, StageState.FAILED, _original(fact), code=fact.code, message=fact.message)
        case _:
            raise TypeError(f"nobody knows what {fact.type} says")
    return learned


def outranks(new: StageState, known: StageState | None, *, run: int = 0, known_run: int = 0) -> bool:
    """Say whether what is new of a stage replaces what is known of it; an equal repeats it.

    A rerun can mend and renew, but take nothing away: where it failed, was skipped or refused, older work stays.
    """
    return known is None or _standing(new, run) >= _standing(known, known_run)


def unless_annotated(keys: Mapping[str, JsonValue], revision: int) -> Mapping[str, JsonValue]:
    """Return what is written of a fact's keys where the owner has annotated the image so many times.

    What was submitted gives way to what was said later; a rerun's submission repeats that, with its revision.
    """
    said = keys.get("revision", 0)
    if not revision or (isinstance(said, int) and said > revision):
        return keys
    return {name: value for name, value in keys.items() if name not in ANNOTATION}


def required_stages(profile: Profile) -> tuple[str, ...]:
    """Return the stages whose end an image waits for, in pipeline order."""
    return (SANITIZER, *(stage for stage in dict.fromkeys(profile.stages) if stage != SANITIZER))


def decide(required: Sequence[str], stages: Mapping[str, StageState]) -> ImageState:
    """Return where an image stands.

    Refused or failed while it was fetched or sanitized: nothing can follow, so that is how it ends. Else it ends when
    every required stage has: failed if one failed, rejected if one refused it, completed if all are done or skipped.
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
    """Return the first stage that made an image end rejected or failed, None if it did not."""
    guilty = {ImageState.REJECTED: StageState.REJECTED, ImageState.FAILED: StageState.FAILED}.get(state)
    order = (SANITIZER, FETCHER, *required) if SANITIZER in stages else (FETCHER, *required)
    return next((stage for stage in order if guilty is not None and stages.get(stage) is guilty), None)


def _standing(state: StageState, run: int) -> tuple[int, int, int]:
    # An image that was accepted is not refused after all: there, a refusal is a failure.
    worth = StageState.FAILED if run and state is StageState.REJECTED else state
    return _RANK[worth], run, _RANK[state]


def _original(fact: ImageRefused | StageFailed) -> dict[str, JsonValue]:
    return {"original": fact.original.model_dump(mode="json")} if fact.original is not None else {}


def _submitted(said: Submission) -> dict[str, JsonValue]:
    return said.model_dump(mode="json", include=set(SUBMISSION))


def _sanitized(fact: ImageSanitized) -> dict[str, JsonValue]:
    image = fact.image.model_dump(mode="json", exclude_none=True)
    keys = (
        "master", "width", "height", "source_format", "frames", "has_alpha",
        "perceptual_hash", "dominant_colour", "palette", "thumbhash", "capture",
    )  # fmt: skip
    return {
        **_submitted(fact),
        "source_url": fact.source_url,
        "original": fact.original.model_dump(mode="json"),
        **{key: image.get(key) for key in keys},
    }


def _detected(fact: ObjectsDetected) -> dict[str, JsonValue]:
    labels: list[JsonValue] = [*sorted({found.label for found in fact.objects})]
    return {"objects": [found.model_dump(mode="json") for found in fact.objects], "labels": labels}
