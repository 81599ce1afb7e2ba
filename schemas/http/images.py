"""Bodies of listing, describing and annotating images."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.http.jobs import ImageMetadata, JobError, StageView
from schemas.values import ImageState, Value

MAX_PAGE = 500  # images of one page
PAGE = 50  # images of a page that asks for no number
MAX_NAMED = 20  # tags, or labels, in one listing's filter

ListedState = Literal["processing", "completed", "rejected", "failed"]


class ImageItem(Value):
    """One image of a listing."""

    image_id: str
    job_id: str = Field(description="of its latest run")
    state: ImageState
    urls: dict[str, str] = Field(default_factory=dict, description="by size, of the existing renditions")
    filename: str | None = None
    bucket: str = "default"
    labels: tuple[str, ...] = Field((), description="detected objects")
    tags: tuple[str, ...] = Field((), description="set by the owner", examples=[["beach", "summer"]])
    category: str | None = Field(None, examples=["holiday"])
    context: dict[str, JsonValue] = Field(default_factory=dict, description="the client's metadata")
    error: JobError | None = None
    created_at: str | None = None
    completed_at: str | None = None


class ImagePage(Value):
    """A page of a listing."""

    items: tuple[ImageItem, ...]
    next_cursor: str | None = Field(
        None,
        description="cursor of the next page, with the same filters; absent on the last",
        examples=["AZmhssPUfl-K"],
    )


class ImageDetails(ImageItem, ImageMetadata):
    """Everything known of an image except the positions of text and objects, which are in its job's result."""

    text: str | None = None
    analysis: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict, description="results of stages without a field of their own, by stage", examples=[{}]
    )
    stages: dict[str, StageView] = Field(default_factory=dict)
    revision: int = Field(0, description="number of changes of tags, category and context")


class AnnotationPatch(BaseModel):
    """A JSON Merge Patch (RFC 7396) of an image: absent members stay, null removes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        json_schema_extra={"examples": [{"tags": ["beach"], "category": None, "context": {"album": "2026"}}]},
    )

    tags: tuple[Tag, ...] | None = Field(None, max_length=MAX_TAGS, description="replaces all tags; null: none")
    category: Category | None = None
    context: dict[str, JsonValue] | None = Field(
        None, description="merged into the client's metadata key by key, at every depth; null: removes all"
    )


MAX_BATCH = 50  # images per batch request


class ImageView(Value):
    """One size of one image."""

    image_id: str
    size: str
    url: str
    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    aspect_ratio: float
    format: str
    size_bytes: int
    sha256: str


class ImageSizes(Value):
    """Every size of one image."""

    image_id: str
    sizes: dict[str, ImageView]


class BatchError(Value):
    """Why one image of a batch is missing in the response."""

    image_id: str
    code: str
    detail: str


class ImageBatch(Value):
    """Several images in one size, in the requested order, without those that have an error."""

    images: tuple[ImageView, ...]
    errors: tuple[BatchError, ...] = ()
