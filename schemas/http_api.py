"""What is said over HTTP: the bodies of requests and responses, shared by the gateway and its Python client."""

from __future__ import annotations

from enum import StrEnum
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.erasures import ErasureState, Removed
from schemas.values import REQUIRED_STAGES, Box, ImageState, Lane, StageState, Value

BUCKET_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
MAX_BATCH = 50  # images one batch request may name
MAX_URL_LENGTH = 4096  # characters


# What clients are told that these are made of; the readers of both know more, and say what is wrong.
_HOST = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_URL_PATTERN = rf"^https?://{_HOST}(?:\.{_HOST})*(?::[1-9][0-9]{{0,3}})?(?:[/?#][!-~]*)?$"
_TERM = (
    r"(?:(?:owner|bucket|label)!?=(?:[A-Za-z0-9._-]{1,64}|\"[A-Za-z0-9 ._-]{1,64}\")"
    r"|text~(?:[A-Za-z0-9]{1,64}|\"[A-Za-z0-9 ]{1,64}\")"
    r"|state!?=(?:processing|completed|rejected|failed)"
    r"|stage\.(?:fetcher|sanitizer|resizer|ocr|detector|embedder)!?=(?:done|skipped|rejected|failed)"
    r"|version\.(?:fetcher|sanitizer|resizer|ocr|detector|embedder)(?:!=|<=|>=|=|<|>)[0-9]{1,9}"
    r"|submitted(?:<=|>=|<|>)20[0-9]{2}-(?:0[1-9]|1[0-2])-(?:0[1-9]|1[0-9]|2[0-8]))"
)
_WHERE_PATTERN = f"^(?:{_TERM}(?: and {_TERM})*)?$"


class ProblemCode(StrEnum):
    """Every reason a request is refused. Part of the problem's `type`; never changes its meaning."""

    BAD_REQUEST = "bad-request"
    UNAUTHORIZED = "unauthorized"
    FORBIDDEN = "forbidden"
    INVALID_FIELD = "invalid-field"
    UNKNOWN_FIELD = "unknown-field"
    MISSING_FILE = "missing-file"
    EMPTY_FILE = "empty-file"
    INVALID_METADATA = "invalid-metadata"
    INVALID_BUCKET = "invalid-bucket"
    INVALID_URL = "invalid-url"
    INVALID_CURSOR = "invalid-cursor"
    NOT_FOUND = "not-found"
    NO_SUCH_SIZE = "no-such-size"
    METHOD_NOT_ALLOWED = "method-not-allowed"
    INVALID_DIGEST = "invalid-digest"
    DIGEST_MISMATCH = "digest-mismatch"
    INVALID_IDEMPOTENCY_KEY = "invalid-idempotency-key"
    IDEMPOTENCY_KEY_IN_USE = "idempotency-key-in-use"
    IDEMPOTENCY_KEY_REUSED = "idempotency-key-reused"
    INVALID_ARCHIVE = "invalid-archive"
    TOO_MANY_FILES = "too-many-files"
    NOTHING_ACCEPTED = "nothing-accepted"
    UPLOAD_TOO_SLOW = "upload-too-slow"
    DIRECT_UPLOAD_UNAVAILABLE = "direct-upload-unavailable"
    NOT_ARRIVED = "not-arrived"
    OFFSET_MISMATCH = "offset-mismatch"
    UNSUPPORTED_TUS_VERSION = "unsupported-tus-version"
    UPLOAD_EXPIRED = "upload-expired"
    UPLOAD_BUSY = "upload-busy"
    TOO_MANY_UPLOADS = "too-many-uploads"
    CHECKSUM_MISMATCH = "checksum-mismatch"
    NOT_FINISHED = "not-finished"
    GONE = "gone"
    SUPERSEDED = "superseded"
    PRECONDITION_FAILED = "precondition-failed"
    RANGE_NOT_SATISFIABLE = "range-not-satisfiable"
    FILE_TOO_LARGE = "file-too-large"
    UNSUPPORTED_FORMAT = "unsupported-format"
    UNSUPPORTED_MEDIA_TYPE = "unsupported-media-type"
    CORRUPT_IMAGE = "corrupt-image"
    NO_VECTOR = "no-vector"
    TOO_MANY_KEYS = "too-many-keys"
    HEADERS_TOO_LARGE = "headers-too-large"
    RATE_LIMITED = "rate-limited"
    QUOTA_EXCEEDED = "quota-exceeded"
    INTERNAL_ERROR = "internal-error"
    DEPENDENCY_UNAVAILABLE = "dependency-unavailable"
    LIVE_UNAVAILABLE = "live-unavailable"
    TOO_MANY_LISTENERS = "too-many-listeners"
    MODEL_UNAVAILABLE = "model-unavailable"
    OVERLOADED = "overloaded"


class ProblemItem(Value):
    """One of several things wrong with a request."""

    field: str = Field(description="where: a form field, a parameter, or a path in the JSON body")
    detail: str


class ProblemBody(Value):
    """An error: RFC 9457, application/problem+json."""

    type: str = Field(examples=["urn:darkroom:problem:not-found"])
    code: str = Field(description="one of ProblemCode; the end of `type`")
    title: str
    status: int
    detail: str
    instance: str = Field(description="the path that was asked")
    correlation_id: str | None = None
    errors: tuple[ProblemItem, ...] = ()


class FetchImage(BaseModel):
    """Ask the pipeline to bring an image from a URL."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(
        min_length=1,
        max_length=MAX_URL_LENGTH,
        examples=["https://example.org/cat.jpg"],
        json_schema_extra={"pattern": _URL_PATTERN},
    )
    bucket: str = Field("default", pattern=BUCKET_PATTERN)
    metadata: dict[str, JsonValue] = Field(default_factory=dict, description="returned as it is, at most 16 KB")
    tags: tuple[Tag, ...] = Field((), max_length=MAX_TAGS, examples=[["cat", "black and white"]])
    category: Category | None = Field(None, examples=["animals"])
    lane: Lane = Field(Lane.INTERACTIVE, description="bulk: when there is room, behind whoever waits")


class Submitted(Value):
    """The request is accepted: stored, and confirmed by Kafka."""

    job_id: str
    image_id: str
    status: ImageState = ImageState.PROCESSING
    lane: Lane = Field(Lane.INTERACTIVE, description="bulk although it was not asked for: too many interactive ones")
    duplicate: bool = Field(False, description="you had handed in the same bytes before: this is that image")
    status_url: str
    result_url: str


class DeletionSubmitted(Submitted):
    """The deletion is accepted: confirmed by Kafka, the image hidden."""

    erasure_url: str = Field(description="what has been removed, to be checked at any time")


class ErasureView(Value):
    """What is left of a deleted image. Times are RFC 3339, UTC."""

    image_id: str
    state: ErasureState = Field(description="requested, erased, or finished: nothing can be written late any more")
    requested_at: str
    erased_at: str | None = None
    finished_at: str | None = None
    removed: Removed
    remaining: int = Field(
        description="objects and receipts of the image that the store holds right now: 0 once erased"
    )
    leaves_log_by: str = Field(description="when the last event about it has left Kafka")


class StageView(Value):
    """Where one stage of one image stands."""

    state: StageState
    attempts: int | None = None
    duration_ms: int | None = None
    version: str | None = None
    reused: bool | None = Field(None, description="the result was already there; nothing was computed")
    reason: str | None = Field(None, description="a stable code, when skipped, rejected or failed")
    message: str | None = None


class JobError(Value):
    """Why an image was refused or could not be processed."""

    code: str
    message: str


class JobStatus(Value):
    """Where a job stands."""

    job_id: str
    image_id: str
    status: ImageState
    stages: dict[str, StageView]
    urls: dict[str, str] = Field(default_factory=dict, description="by size, as far as they are there")
    created_at: str | None = None
    completed_at: str | None = None
    error: JobError | None = None
    lane: Lane | None = Field(None, description="where it waits, until the first agent has reported of it")


class Dimensions(Value):
    """Width and height in pixels."""

    width: int
    height: int


class VariantView(Value):
    """What is known of one size of an image."""

    width: int = Field(description="pixels")
    height: int = Field(description="pixels")
    aspect_ratio: float = Field(description="width / height")
    format: str
    size_bytes: int


class ImageMetadata(Value):
    """What is known of an image beside what it shows."""

    dominant_color: str | None = None
    palette: tuple[str, ...] = ()
    thumbhash: str | None = None
    perceptual_hash: str | None = None
    original_dimensions: Dimensions | None = Field(None, description="upright")
    source_format: str | None = None
    frames: int | None = None
    filename: str | None = None
    bucket: str = "default"
    source_url: str | None = None
    tags: tuple[str, ...] = Field((), description="what its owner calls it", examples=[["beach", "summer"]])
    category: str | None = Field(None, examples=["holiday"])
    variants: dict[str, VariantView] = Field(default_factory=dict)
    context: dict[str, JsonValue] = Field(default_factory=dict, description="what the client sent as metadata")


class SpanView(Value):
    """One piece of text; the polygon is in pixels of the upright image, clockwise from the text's top left."""

    text: str
    confidence: float
    polygon: tuple[tuple[float, float], ...]
    engine: str
    language: str


class TextView(Value):
    """The text of an image in reading order."""

    content: str
    spans: tuple[SpanView, ...] = ()


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
    text: TextView | None = Field(None, description="absent when no text stage was done")
    objects: tuple[ObjectView, ...] | None = Field(None, description="absent when no detection was done")
    stages: dict[str, StageView] = Field(default_factory=dict)
    error: JobError | None = None
    created_at: str | None = None
    completed_at: str | None = None


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
    """Why one image of a batch is not in the answer."""

    image_id: str
    code: str
    detail: str


class ImageBatch(Value):
    """Several images in one size, in the order asked, without those that have an error."""

    images: tuple[ImageView, ...]
    errors: tuple[BatchError, ...] = ()


class SearchItem(Value):
    """One image a search found."""

    image_id: str
    score: float = Field(ge=0, le=1, description="rank over all ways of searching; 1 = first in each")
    similarity: float | None = Field(None, description="cosine to the query, when found by meaning")
    matched: tuple[str, ...] = Field(description="of: meaning, text, label")
    urls: dict[str, str] = Field(default_factory=dict)
    labels: tuple[str, ...] = ()
    text: str | None = Field(None, description="the beginning of the image's text, or where the words are")
    tags: tuple[str, ...] = Field((), description="what its owner calls it", examples=[["beach", "summer"]])
    category: str | None = Field(None, examples=["holiday"])
    context: dict[str, JsonValue] = Field(default_factory=dict)


class SearchAnswer(Value):
    """What a search found, best first."""

    query: str
    by_meaning: bool = Field(description="whether images were compared by meaning (CLIP)")
    reason: str | None = Field(None, description="why not by meaning")
    items: tuple[SearchItem, ...]


class SearchLike(BaseModel):
    """Search images like one that is already there."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_id: str
    limit: int | None = Field(None, ge=1)


class Landing(Value):
    """The system and its ways in."""

    name: str = Field(examples=["darkroom"])
    version: str = Field(examples=["1.0.0"])
    docs: str = Field(description="the API's page for people")
    openapi: str = Field(description="the API's document")
    ways_in: dict[str, str] = Field(
        description="what for: method and path", examples=[{"upload": "POST /api/v1/images/upload"}]
    )


class PartHealth(Value):
    """How one part of the system does."""

    ok: bool
    detail: str = Field("", examples=["objects can be written and read"])
    state: Literal["ok", "degraded", "down"] | None = Field(
        None, description="degraded: it works with less than it should, or answers but is left alone after failures"
    )
    latency_ms: float | None = Field(None, description="of the question it was just asked", examples=[4.2])
    breaker: Literal["closed", "half-open", "open"] | None = Field(
        None, description="of a dependency: open = calls are refused for a while; half-open = one call finds out"
    )


class Health(Value):
    """How the system does. `ready` = an upload would be carried to its end."""

    status: str = Field(examples=["ok", "degraded", "unready"])
    ready: bool
    version: str
    parts: dict[str, PartHealth]


class ReprocessRequest(BaseModel):
    """Ask for one stage to run again."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    stage: str = Field(
        description="sanitizer, resizer, ocr, detector or embedder",
        max_length=64,
        examples=["ocr"],
        json_schema_extra={"enum": list(REQUIRED_STAGES)},
    )
    where: str = Field(
        "",
        max_length=2000,
        description="which images: terms joined by `and`; empty: all",
        examples=["state=completed and version.ocr<2"],
        json_schema_extra={"pattern": _WHERE_PATTERN},
    )
    per_second: float = Field(20.0, ge=0.1, le=200, strict=True, description="images a second at most")
    dry_run: bool = Field(False, strict=True, description="only say which images it would be")


class ReprocessPlan(Value):
    """What a rerun would be."""

    stage: str
    where: str
    images: int = Field(description="how many are selected")
    counted_all: bool = Field(description="false: there are more, counting them takes too long for a request")
    first: tuple[str, ...] = Field(description="the ids of some of them")


class ReprocessView(Value):
    """A rerun, and how far it is."""

    id: str
    stage: str
    where: str
    per_second: float
    state: str = Field(examples=["running", "done", "cancelled", "failed"])
    total: int | None = Field(None, description="images selected; absent while they are counted")
    done: int = Field(description="images whose rerun is on its way, in the bulk lane")
    skipped: int
    reasons: dict[str, int] = Field(default_factory=dict, description="why images were skipped, and how many")
    rate: float = Field(description="images a second, lately")
    eta_s: float | None = Field(None, description="seconds until all are on their way")
    started_at: str
    updated_at: str
    error: str | None = None


class ReprocessList(Value):
    """Every rerun, newest first."""

    jobs: tuple[ReprocessView, ...]


class AgentPause(Value):
    """Why an agent does not consume."""

    reason: str
    by: str = Field(description="the worker that stopped itself, or operator")
    at: str


class AgentView(Value):
    """What an agent says of itself."""

    name: str
    paused: AgentPause | None = None
    degraded: str | None = Field(None, description="what it does without, for instance a model: its stage skips")


class AgentList(Value):
    """Every agent."""

    agents: tuple[AgentView, ...]


class PauseRequest(BaseModel):
    """Ask an agent to take nothing more."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    reason: str = Field(min_length=1, max_length=500, description="shown wherever it is seen that it is paused")
