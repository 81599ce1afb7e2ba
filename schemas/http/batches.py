"""HTTP bodies of batches and of the lookup of known bytes."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.http.submissions import BUCKET_PATTERN, ProfileRequest, Submitted
from schemas.values import ImageState, Value


class KnownImage(Value):
    """The caller's newest image with certain bytes."""

    image_id: str
    job_id: str
    sha256: str = Field(examples=["5f8f04f6a3a892aaabbddb6cf273894493773960d4a325b105fee46eef4304f1"])
    status: ImageState | None = Field(None, description="absent from the ingest app")
    status_url: str
    result_url: str


class BatchDetails(BaseModel):
    """Values for one file of a batch, which override those of the batch."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: str | None = Field(None, pattern=BUCKET_PATTERN)
    metadata: dict[str, JsonValue] | None = None
    tags: tuple[Tag, ...] | None = Field(None, max_length=MAX_TAGS)
    category: Category | None = None
    profile: ProfileRequest | None = None


class BatchRefusal(Value):
    """Why one file of a batch was refused."""

    code: str = Field(description="code of the problem", examples=["unsupported-format"])
    title: str
    detail: str


class BatchItem(Value):
    """The result of one file of a batch."""

    index: int = Field(description="position in the request or archive, from 0")
    filename: str | None = None
    status: int = Field(description="HTTP status of the file's own request", examples=[202])
    sha256: str | None = None
    accepted: Submitted | None = None
    error: BatchRefusal | None = None


class BatchSubmitted(Value):
    """The result of each file of a batch, in request order."""

    accepted: int = Field(description="accepted files, including duplicates of earlier ones")
    refused: int
    items: tuple[BatchItem, ...]
