"""What is said over HTTP of uploads beside the plain ones: known bytes, and batches."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.http.submissions import BUCKET_PATTERN, Submitted
from schemas.values import ImageState, Value


class KnownImage(Value):
    """The newest of your images that were made of certain bytes."""

    image_id: str
    job_id: str
    sha256: str = Field(examples=["5f8f04f6a3a892aaabbddb6cf273894493773960d4a325b105fee46eef4304f1"])
    status: ImageState | None = Field(None, description="absent where only the ingest app is asked")
    status_url: str
    result_url: str


class BatchDetails(BaseModel):
    """What is said of one file of a batch, in place of what is said of all."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bucket: str | None = Field(None, pattern=BUCKET_PATTERN)
    metadata: dict[str, JsonValue] | None = None
    tags: tuple[Tag, ...] | None = Field(None, max_length=MAX_TAGS)
    category: Category | None = None


class BatchRefusal(Value):
    """Why one file of a batch was not accepted."""

    code: str = Field(description="as of a problem", examples=["unsupported-format"])
    title: str
    detail: str


class BatchItem(Value):
    """What became of one file of a batch."""

    index: int = Field(description="its place in the request, or in the archive, from 0")
    filename: str | None = None
    status: int = Field(description="as if it had been sent alone", examples=[202])
    sha256: str | None = None
    accepted: Submitted | None = None
    error: BatchRefusal | None = None


class BatchSubmitted(Value):
    """What became of each file of a batch, in the order sent."""

    accepted: int = Field(description="how many, those you had handed in before included")
    refused: int
    items: tuple[BatchItem, ...]
