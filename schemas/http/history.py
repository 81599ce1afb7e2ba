"""Bodies of history and lineage: the events of an image, and the origin of each of its results."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from schemas.values import Box, ImageState, Lane, ModelRef, StageState, Value

_IMAGE = "01890a5d-ac96-774b-bcce-b302099a8057"


class HistoryKind(StrEnum):
    """The kind of a history entry."""

    ACCEPTED = "accepted"  # an upload, a fetch, or an event of another service
    STAGE = "stage"  # a fact of a stage
    ANNOTATED = "annotated"  # the owner changed tags, category or metadata
    RERUN = "rerun-requested"  # of one stage, or of all
    ENDED = "ended"  # the final state


class HistoryItem(Value):
    """One entry. Its fields depend on `kind`. Times are RFC 3339, UTC."""

    at: str = Field(description="when it happened", examples=["2026-01-01T12:00:00.000Z"])
    recorded_at: str | None = Field(default=None, description="when the event was appended to the log")
    kind: HistoryKind
    via: str | None = Field(default=None, description="how it was submitted: upload, fetch or event")
    lane: Lane | None = None
    job_id: str = Field(examples=[f"{_IMAGE}.1"])
    event: str | None = Field(default=None, description="the event's type", examples=["darkroom.image.resized.v1"])
    event_id: str | None = Field(default=None, description="the event's ce_id")
    stage: str | None = Field(default=None, examples=["resizer"])
    state: StageState | ImageState | None = None
    reason: str | None = Field(default=None, description="an error code of docs/errors.md")
    attempts: int | None = None
    duration_ms: int | None = None
    reused: bool | None = Field(default=None, description="an existing result was reused; nothing was computed")
    version: str | None = Field(default=None, description="of the stage")
    run: int | None = Field(default=None, description="the rerun: its request time in unix milliseconds")
    worker: str | None = Field(default=None, description="the process that emitted the event", examples=["node-3/4711"])
    trace_id: str | None = None
    position: str | None = Field(default=None, description="topic/partition/offset", examples=["image.facts/2/1041"])


class ImageHistory(Value):
    """The history of an image, oldest first."""

    image_id: str
    items: tuple[HistoryItem, ...]
    cut: bool = Field(description="entries were removed: the oldest reruns and repetitions")


class LineageState(StrEnum):
    """Whether the origin is known."""

    KNOWN = "known"
    NOT_MADE = "not-made"  # the stage has not run, or has no result
    MISSING = "missing"  # the stored result was removed
    UNREADABLE = "unreadable"  # the stored result cannot be parsed


class Origin(Value):
    """The origin of one stage's result."""

    state: LineageState
    detail: str | None = Field(default=None, description="why it is unknown")
    stage_state: StageState
    reused: bool = Field(default=False, description="computed earlier from equal bytes")
    input_sha256: str | None = Field(default=None, description="of the input bytes")
    stage_version: str | None = None
    code_version: str | None = None
    models: tuple[ModelRef, ...] = Field(default=(), description="the weights it was computed with")
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    parameters_hash: str | None = None
    computed_at: str | None = Field(default=None, description="RFC 3339, UTC")
    duration_ms: int | None = None
    event_id: str | None = Field(default=None, description="ce_id of the event that caused it")
    trace_id: str | None = None


class LineageKind(StrEnum):
    """The kind of a result."""

    MASTER = "master"
    VARIANT = "variant"
    TEXT = "text"
    OBJECT = "object"
    VECTOR = "vector"
    ANALYSIS = "analysis"


class LineageItem(Value):
    """One result of an image, and its stage."""

    kind: LineageKind
    name: str = Field(description="the variant's name, the object's label, the analysis' stage", examples=["thumbnail"])
    stage: str = Field(description="see `origins`", examples=["resizer"])
    sha256: str | None = Field(default=None, description="of its bytes, if it has any")
    box: Box | None = None


class ImageLineage(Value):
    """The origin of every result of an image."""

    image_id: str
    original_sha256: str | None = None
    items: tuple[LineageItem, ...]
    origins: dict[str, Origin] = Field(description="by stage")
