"""HTTP bodies of uploads in several requests: resumable (tus) and direct to the object store."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.formats import MEDIA_TYPES
from schemas.http.jobs import JobError
from schemas.http.submissions import BUCKET_PATTERN, ProfileRequest, Submitted
from schemas.values import SHA256_PATTERN, Lane, Value


class UploadState(StrEnum):
    """State of an upload."""

    RECEIVING = "receiving"
    ACCEPTED = "accepted"
    REFUSED = "refused"


class UploadView(Value):
    """State of an upload in several requests."""

    upload_id: str
    state: UploadState
    offset: int | None = Field(None, description="bytes received; empty while only the store knows")
    size: int | None = Field(None, description="bytes of the whole file, if declared")
    expires_at: str = Field(description="expiry of the upload and of its status")
    job: Submitted | None = Field(None, description="the job, once accepted")
    error: JobError | None = Field(None, description="the reason, if refused")


class DirectUpload(BaseModel):
    """Request for a form that uploads one file directly to the object store."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    filename: str | None = Field(None, max_length=1000, examples=["cat.jpg"])
    content_type: str = Field(
        description="content type of the file",
        examples=["image/jpeg"],
        json_schema_extra={"enum": list(MEDIA_TYPES.values())},
    )
    size: int | None = Field(
        None, ge=1, description="bytes of the file, if known: the store then accepts no other size"
    )
    sha256: str | None = Field(None, pattern=SHA256_PATTERN, description="checked when the upload is completed")
    bucket: str = Field("default", pattern=BUCKET_PATTERN)
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="returned unchanged, at most 16 KB")
    tags: tuple[Tag, ...] = Field((), max_length=MAX_TAGS)
    category: Category | None = None
    lane: Lane = Field(Lane.INTERACTIVE, description="bulk: processed with spare capacity, after interactive images")
    profile: ProfileRequest = Field(default_factory=ProfileRequest)
    on_duplicate: Literal["new", "reuse"] = Field(
        "new", description="reuse: if the same bytes were uploaded before, return that image"
    )


class DirectUploadForm(Value):
    """A form for one file: POST it to `url` as multipart/form-data, the fields first, then the file as `file`."""

    upload_id: str
    url: str = Field(description="URL of the object store; send it no credentials of this API")
    fields: dict[str, str]
    max_bytes: int
    expires_at: str = Field(description="expiry of the form")
    complete_url: str = Field(description="POST here after the file is uploaded")
    status_url: str
