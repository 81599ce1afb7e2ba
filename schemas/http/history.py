"""History and lineage over HTTP: what happened to an image, and where each part of what is known of it comes from."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from schemas.values import Box, ImageState, Lane, ModelRef, StageState, Value

_IMAGE = "01890a5d-ac96-774b-bcce-b302099a8057"


class HistoryKind(StrEnum):
    """What an entry of a history is of."""

    ACCEPTED = "accepted"  # an upload, a fetch, or an event of another service
    STAGE = "stage"  # what a stage said
    ANNOTATED = "annotated"  # its owner said tags, category or metadata anew
    RERUN = "rerun-requested"  # a stage, or all of it, was asked to run again
    ENDED = "ended"  # how it stands, if it has ended


class HistoryItem(Value):
    """One thing that happened. Which fields are there depends on `kind`. Times are RFC 3339, UTC."""

    at: str = Field(description="when it happened", examples=["2026-01-01T12:00:00.000Z"])
    recorded_at: str | None = Field(default=None, description="when the log took the event")
    kind: HistoryKind
    via: str | None = Field(default=None, description="of what was accepted: upload, fetch or event")
    lane: Lane | None = None
    job_id: str = Field(examples=[f"{_IMAGE}.1"])
    event: str | None = Field(default=None, description="the event's type", examples=["darkroom.image.resized.v1"])
    event_id: str | None = Field(default=None, description="the event's ce_id")
    stage: str | None = Field(default=None, examples=["resizer"])
    state: StageState | ImageState | None = None
    reason: str | None = Field(default=None, description="an error code of docs/errors.md")
    attempts: int | None = None
    duration_ms: int | None = None
    reused: bool | None = Field(default=None, description="the result was already there; nothing was computed")
    version: str | None = Field(default=None, description="of the stage")
    run: int | None = Field(default=None, description="which rerun: when it was asked for, unix milliseconds")
    worker: str | None = Field(default=None, description="the process that said it", examples=["node-3/4711"])
    trace_id: str | None = None
    position: str | None = Field(default=None, description="topic/partition/offset", examples=["image.facts/2/1041"])


class ImageHistory(Value):
    """Everything that happened to an image, oldest first."""

    image_id: str
    items: tuple[HistoryItem, ...]
    cut: bool = Field(description="there were more: the oldest reruns and repetitions were forgotten")


class LineageState(StrEnum):
    """Whether it is known where something comes from."""

    KNOWN = "known"
    NOT_MADE = "not-made"  # the stage has not run, or made nothing
    MISSING = "missing"  # what the stage stored is not there any more
    UNREADABLE = "unreadable"  # it is there, and cannot be read


class Origin(Value):
    """Where the work of one stage comes from."""

    state: LineageState
    detail: str | None = Field(default=None, description="why it is not known")
    stage_state: StageState
    reused: bool = Field(default=False, description="computed for equal bytes before, and adopted")
    input_sha256: str | None = Field(default=None, description="of the bytes it was computed from")
    stage_version: str | None = None
    code_version: str | None = None
    models: tuple[ModelRef, ...] = Field(default=(), description="the weights that answered")
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    parameters_hash: str | None = None
    computed_at: str | None = Field(default=None, description="RFC 3339, UTC")
    duration_ms: int | None = None
    event_id: str | None = Field(default=None, description="ce_id of the event that asked for it")
    trace_id: str | None = None


class LineageKind(StrEnum):
    """What a part of an image is."""

    MASTER = "master"
    VARIANT = "variant"
    TEXT = "text"
    OBJECT = "object"
    VECTOR = "vector"
    ANALYSIS = "analysis"


class LineageItem(Value):
    """One part of what is known of an image, and the stage it comes from."""

    kind: LineageKind
    name: str = Field(description="the variant's name, the object's label, the analysis' stage", examples=["thumbnail"])
    stage: str = Field(description="see `origins`", examples=["resizer"])
    sha256: str | None = Field(default=None, description="of its bytes, if it has any")
    box: Box | None = None


class ImageLineage(Value):
    """Where everything that is known of an image comes from."""

    image_id: str
    original_sha256: str | None = None
    items: tuple[LineageItem, ...]
    origins: dict[str, Origin] = Field(description="by stage")
