"""Live progress over HTTP: the data of each server-sent event. The event's name says which of these it is."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.values import ErrorCode, ImageState, StageState, Value

_IMAGE = "01890a5d-ac96-774b-bcce-b302099a8057"


class LiveEvent(StrEnum):
    """The names of the events, `event:` on the wire. `message` is never used."""

    SNAPSHOT = "snapshot"  # schemas.http.jobs.JobStatus: where the job stands; begins the stream of a job
    STAGE = "stage"  # StageChanged
    COMPLETED = "completed"  # ImageEnded, as the next three; ends the stream of a job
    REJECTED = "rejected"
    FAILED = "failed"
    DELETED = "deleted"
    DELETING = "deleting"  # DeletionBegun
    ANNOTATED = "annotated"  # ImageTouched
    SUPERSEDED = "superseded"  # JobSuperseded: a newer run has taken over; ends the stream of a job
    RESET = "reset"  # StreamNotice: events were missed for good; what follows is live
    CUT = "cut"  # StreamNotice: the last of this stream, because its reader is too slow; resume


class StageChanged(Value):
    """What a stage said of one image."""

    image_id: str = Field(examples=[_IMAGE])
    job_id: str = Field(examples=[f"{_IMAGE}.1"])
    stage: str = Field(examples=["resizer"])
    state: StageState
    attempts: int = Field(ge=1)
    duration_ms: int = Field(ge=0)
    reused: bool = Field(default=False, description="the result was already there; nothing was computed")
    run: int | None = Field(default=None, description="which rerun said this: when it was asked for, unix milliseconds")
    reason: ErrorCode | None = None
    message: str | None = None
    at: str = Field(description="RFC 3339, UTC")


class ImageEnded(Value):
    """How an image ended."""

    image_id: str
    job_id: str
    status: ImageState
    reason: ErrorCode | None = None
    message: str | None = None
    at: str = Field(description="RFC 3339, UTC")


class DeletionBegun(Value):
    """The deletion of an image was accepted. Its job ends with `deleted`."""

    image_id: str
    job_id: str = Field(description="of the deletion")
    at: str = Field(description="RFC 3339, UTC")


class ImageTouched(Value):
    """What the owner says of an image was changed."""

    image_id: str
    job_id: str
    at: str = Field(description="RFC 3339, UTC")


class JobSuperseded(Value):
    """A newer run of the image has taken over."""

    image_id: str
    job_id: str
    by: str = Field(description="the job that took over")


class StreamNotice(Value):
    """What happened to this stream, not to an image."""

    detail: str
