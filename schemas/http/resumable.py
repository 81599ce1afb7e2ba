"""What is said over HTTP of uploads that take more than one request: resumable ones, and straight to the store."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.formats import MEDIA_TYPES
from schemas.http.jobs import JobError
from schemas.http.submissions import BUCKET_PATTERN, Submitted
from schemas.values import SHA256_PATTERN, Lane, Value


class UploadState(StrEnum):
    """Where an upload stands."""

    RECEIVING = "receiving"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class UploadView(Value):
    """Where an upload stands that takes more than one request."""

    upload_id: str
    state: UploadState
    offset: int | None = Field(None, description="bytes that have come; empty while the store alone knows")
    size: int | None = Field(None, description="bytes of the whole file, if the client has said how many")
    expires_at: str = Field(description="until then it can be finished, and asked about")
    job: Submitted | None = Field(None, description="what became of it, once accepted")
    error: JobError | None = Field(None, description="why nothing became of it, if refused")


class DirectUpload(BaseModel):
    """Ask for a form by which one file goes straight to the object store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filename: str | None = Field(None, max_length=1000, examples=["cat.jpg"])
    content_type: str = Field(
        description="what the file will be sent as",
        examples=["image/jpeg"],
        json_schema_extra={"enum": list(MEDIA_TYPES.values())},
    )
    size: int | None = Field(None, ge=1, description="bytes of the file, if known: no other size is let in then")
    sha256: str | None = Field(None, pattern=SHA256_PATTERN, description="checked when the upload is completed")
    bucket: str = Field("default", pattern=BUCKET_PATTERN)
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="returned as it is, at most 16 KB")
    tags: tuple[Tag, ...] = Field((), max_length=MAX_TAGS)
    category: Category | None = None
    lane: Lane = Field(Lane.INTERACTIVE, description="bulk: when there is room, behind whoever waits")
    on_duplicate: Literal["new", "reuse"] = Field(
        "new", description="reuse: if you have handed in the same bytes before, the answer is that image"
    )


class DirectUploadForm(Value):
    """A form for one file: POST it to `url` as multipart/form-data, the fields first, then the file as `file`."""

    upload_id: str
    url: str = Field(description="of the object store; it is sent no credentials of ours")
    fields: dict[str, str]
    max_bytes: int
    expires_at: str = Field(description="until when the form can be used")
    complete_url: str = Field(description="POST here when the store has the file")
    status_url: str
