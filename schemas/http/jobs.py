"""Bodies of jobs and their results, shared by the gateway and its Python client."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import Field, JsonValue

from schemas.values import Box, ImageState, Lane, StageState, TextBlock, TextWord, Value


class JobPhase(StrEnum):
    """How far a job is, in more detail than its status."""

    PENDING = "pending"  # accepted; no agent has reported
    PROCESSING = "processing"
    RETRYING = "retrying"  # a stage failed for now and tries again; see `retry`
    ENDED = "ended"  # the status says how


class Retry(Value):
    """The last try of a stage that will be tried again."""

    stage: str = Field(examples=["sanitizer"])
    attempts: int = Field(ge=1, description="tries so far")
    code: str = Field(description="stable code of the last error", examples=["dependency-unavailable"])
    message: str
    next_try_at: str = Field(description="RFC 3339, UTC; the earliest time. Past: it is waiting or being tried")


class StageView(Value):
    """The state of one stage of one image. While `pending`, `retrying` says that it failed for now."""

    state: StageState
    retrying: bool | None = Field(None, description="it tries again; attempts and reason are of its last try")
    attempts: int | None = None
    duration_ms: int | None = None
    version: str | None = None
    reused: bool | None = Field(None, description="an existing result was reused; nothing was computed")
    reason: str | None = Field(None, description="a stable code, when skipped, rejected, failed or retrying")
    message: str | None = None
    next_try_at: str | None = Field(None, description="RFC 3339, UTC; when retrying: the earliest time of the next try")


class JobError(Value):
    """Why an image was rejected or failed."""

    code: str
    message: str


class JobStatus(Value):
    """The state of a job."""

    job_id: str
    image_id: str
    status: ImageState
    phase: JobPhase | None = Field(None, description="absent from older servers")
    retry: Retry | None = Field(None, description="of the stage that tries again first, while the phase is `retrying`")
    stages: dict[str, StageView]
    urls: dict[str, str] = Field(default_factory=dict, description="by size, of the existing renditions")
    created_at: str | None = None
    completed_at: str | None = None
    error: JobError | None = None
    lane: Lane | None = Field(None, description="the lane it waits in, until an agent has reported")


class Dimensions(Value):
    """Width and height in pixels."""

    width: int
    height: int


class VariantView(Value):
    """One size of an image."""

    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    aspect_ratio: float = Field(description="width / height")
    format: str
    size_bytes: int


class ImageMetadata(Value):
    """Properties of an image."""

    dominant_color: str | None = None
    palette: tuple[str, ...] = ()
    thumbhash: str | None = None
    perceptual_hash: str | None = None
    original_dimensions: Dimensions | None = Field(None, description="upright")
    source_format: str | None = None
    frames: int | None = Field(None, description="frames of an animation, or all pages of a document")
    pages: int | None = Field(None, description="pages of a document that were taken, the first one included; else 1")
    filename: str | None = None
    bucket: str = "default"
    source_url: str | None = None
    tags: tuple[str, ...] = Field((), description="set by the owner", examples=[["beach", "summer"]])
    category: str | None = Field(None, examples=["holiday"])
    variants: dict[str, VariantView] = Field(default_factory=dict)
    context: dict[str, JsonValue] = Field(default_factory=dict, description="the client's metadata")


class SpanView(Value):
    """One piece of text; the polygon is in pixels of the upright image, clockwise from the text's top left."""

    text: str
    confidence: float
    polygon: tuple[tuple[float, float], ...]
    engine: str
    language: str = Field(description="BCP 47: a language if it is known, else `und` and the script")
    script: str | None = Field(default=None, description="ISO 15924; Zyyy: digits and signs only", examples=["Latn"])
    words: tuple[TextWord, ...] = ()
    block: int = Field(default=0, ge=0, description="number of its block in `blocks`, from 0")
    row: int = Field(default=0, ge=0, description="number of its row in the image, from 0; cells of a row share one")


class EngineTextView(Value):
    """What one of several engines read by itself."""

    engine: str
    content: str
    spans: tuple[SpanView, ...] = ()


class PageTextView(Value):
    """The text of one page of a document, in pixels of that page."""

    number: int = Field(description="of the page in the file, from 1")
    width: int = Field(description="pixels, upright")
    height: int = Field(description="pixels, upright")
    content: str
    spans: tuple[SpanView, ...] = ()
    blocks: tuple[TextBlock, ...] = ()
    rotation: int = 0
    tilt: float = 0.0


TextFormat = Literal["json", "text", "hocr", "alto", "pdf"]
"""How the text of an image is returned."""


class TextView(Value):
    """The text of an image in reading order: blocks, their lines, and the words of each line.

    Of a document, `content` is the text of all pages, separated by form feeds; lines, blocks, rotation, tilt and
    readings are those of the first page, and `pages` has those of each.
    """

    content: str
    spans: tuple[SpanView, ...] = Field(default=(), description="lines in reading order; each names its block")
    blocks: tuple[TextBlock, ...] = Field(default=(), description="paragraphs, headings and tables in reading order")
    rotation: int = Field(default=0, description="degrees clockwise that would make the text upright: 0, 90, 180, 270")
    tilt: float = Field(default=0.0, description="degrees clockwise that the lines are tilted, after that rotation")
    notes: tuple[str, ...] = Field(default=(), description="what could not be read, and why")
    readings: tuple[EngineTextView, ...] = Field(default=(), description="`hybrid`: what each engine read by itself")
    pages: tuple[PageTextView, ...] = Field(default=(), description="every page of a document that was read")


class ObjectView(Value):
    """One object found in an image."""

    label: str
    confidence: float
    box: Box = Field(description="fractions of the upright image's width and height")
    pixels: Box = Field(description="pixels of the upright image")


class JobResult(Value):
    """Everything known of an image whose job has ended."""

    image_id: str
    job_id: str
    status: ImageState
    urls: dict[str, str] = Field(default_factory=dict)
    metadata: ImageMetadata = Field(default_factory=ImageMetadata)
    text: TextView | None = Field(None, description="absent if the text was not read")
    objects: tuple[ObjectView, ...] | None = Field(None, description="absent if no detection was done")
    analysis: dict[str, dict[str, JsonValue]] = Field(
        default_factory=dict, description="results of stages without a field of their own, by stage", examples=[{}]
    )
    stages: dict[str, StageView] = Field(default_factory=dict)
    error: JobError | None = None
    created_at: str | None = None
    completed_at: str | None = None
