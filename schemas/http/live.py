"""Data of the server-sent events of live progress, by event name."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.values import ErrorCode, ImageState, StageState, Value

_IMAGE = "01890a5d-ac96-774b-bcce-b302099a8057"


class LiveEvent(StrEnum):
    """Event names, `event:` on the wire. `message` is never used."""

    SNAPSHOT = "snapshot"  # schemas.http.jobs.JobStatus: the job's current state; first event of a job's stream
    STAGE = "stage"  # StageChanged
    RETRYING = "retrying"  # StageDelayed
    COMPLETED = "completed"  # ImageEnded, as the next three; last event of a job's stream
    REJECTED = "rejected"
    FAILED = "failed"
    DELETED = "deleted"
    DELETING = "deleting"  # DeletionBegun
    ANNOTATED = "annotated"  # ImageTouched
    SUPERSEDED = "superseded"  # JobSuperseded: a newer run replaced the job; last event of its stream
    RESET = "reset"  # StreamNotice: events were lost; what follows is live
    CUT = "cut"  # StreamNotice: last event of this stream, because its reader is too slow; resume


class StageChanged(Value):
    """A stage's result for one image."""

    image_id: str = Field(examples=[_IMAGE])
    job_id: str = Field(examples=[f"{_IMAGE}.1"])
    stage: str = Field(examples=["resizer"])
    state: StageState
    attempts: int = Field(ge=1)
    duration_ms: int = Field(ge=0)
    reused: bool = Field(default=False, description="an earlier result was reused; nothing was computed")
    run: int | None = Field(default=None, description="rerun of this result: its request time, unix milliseconds")
    reason: ErrorCode | None = None
    message: str | None = None
    at: str = Field(description="RFC 3339, UTC")


class StageDelayed(Value):
    """A stage could not do its work for one image now, and tries again."""

    image_id: str = Field(examples=[_IMAGE])
    job_id: str = Field(examples=[f"{_IMAGE}.1"])
    stage: str = Field(examples=["resizer"])
    attempts: int = Field(ge=1)
    reason: ErrorCode
    message: str
    next_try_at: str = Field(description="RFC 3339, UTC; the earliest time of the next try")
    at: str = Field(description="RFC 3339, UTC")


class ImageEnded(Value):
    """The end of an image."""

    image_id: str
    job_id: str
    status: ImageState
    reason: ErrorCode | None = None
    message: str | None = None
    at: str = Field(description="RFC 3339, UTC")


class DeletionBegun(Value):
    """The deletion of an image was accepted. Its job ends with `deleted`."""

    image_id: str
    job_id: str = Field(description="job of the deletion")
    at: str = Field(description="RFC 3339, UTC")


class ImageTouched(Value):
    """The owner's annotations of an image changed."""

    image_id: str
    job_id: str
    at: str = Field(description="RFC 3339, UTC")


class JobSuperseded(Value):
    """A newer run of the image replaced the job."""

    image_id: str
    job_id: str
    by: str = Field(description="the newer job")


class StreamNotice(Value):
    """A notice about the stream, not about an image."""

    detail: str
