"""Values of events: ids, object references, renditions, text spans, boxes, vectors, codes."""

from __future__ import annotations

import base64
import secrets
import struct
import threading
import time
import uuid
from enum import StrEnum
from typing import Annotated, NewType, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

ImageId = NewType("ImageId", str)
JobId = NewType("JobId", str)
Owner = NewType("Owner", str)

DEFAULT_OWNER = Owner("default")
ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
OWNER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"


class Value(BaseModel):
    """A frozen wire value. Unknown fields are ignored, so that an older reader accepts a newer writer's values."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_id_lock = threading.Lock()
_last_id = (0, 0)  # milliseconds, and the 74 bits after them


def new_image_id() -> ImageId:
    """Return a UUIDv7 as text, greater than all earlier ones of this process.

    RFC 9562, sections 5.7 and 6.2 (method 2): 48 bits of unix milliseconds, then 74 random bits; within a millisecond,
    or when the clock went back, the previous bits plus a random step.
    """
    global _last_id  # noqa: PLW0603 - ids increase within the process
    milliseconds = time.time_ns() // 1_000_000
    with _id_lock:
        last, rest = _last_id
        rest += 1 + secrets.randbits(32)
        if milliseconds > last or rest >> 74:
            milliseconds, rest = max(milliseconds, last + 1), secrets.randbits(74)
        else:
            milliseconds = last
        _last_id = (milliseconds, rest)
    value = (milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (rest >> 62 & 0xFFF) << 64
    value |= 0b10 << 62 | rest & (1 << 62) - 1
    return ImageId(str(uuid.UUID(int=value)))


def made_at(image_id: str) -> float:
    """Return the creation time of an image id, unix seconds: a UUIDv7 begins with its milliseconds."""
    return (uuid.UUID(image_id).int >> 80) / 1000


def earliest_id(at: float) -> ImageId:
    """Return the least image id of a time (unix seconds), where a scan by age begins."""
    return ImageId(str(uuid.UUID(int=max(0, min(int(at * 1000), (1 << 48) - 1)) << 80)))


def job_id_of(image_id: str, generation: int) -> JobId:
    """Return the id of one run of one image; any producer can compute it."""
    return JobId(f"{image_id}.{generation}")


def split_job_id(job_id: str) -> tuple[ImageId, int]:
    """Return the image id and generation a job id names. Raises ValueError if it is not one."""
    image_id, _, generation = job_id.partition(".")
    uuid.UUID(image_id)
    if not generation.isascii() or not generation.isdigit() or len(generation) > 9:
        raise ValueError(f"not a job id: {job_id[:80]!r}")
    return ImageId(image_id), int(generation)


LowerCase = Annotated[str, BeforeValidator(lambda text: text.lower() if isinstance(text, str) else text)]
"""Hexadecimal text: other producers may write it in upper case."""


class ObjectRef(Value):
    """A claim check: location and hash of stored bytes."""

    bucket: str
    key: str
    sha256: LowerCase = Field(pattern=SHA256_PATTERN)
    size: int = Field(ge=0, description="bytes")
    content_type: str = "application/octet-stream"


class ErrorCode(StrEnum):
    """Every reason an image, an event or a request can be refused: metric label, API field, documentation anchor."""

    # The image is refused (final, no alert).
    UNSUPPORTED_FORMAT = "unsupported-format"
    EMPTY_FILE = "empty-file"
    FILE_TOO_LARGE = "file-too-large"
    DIMENSIONS_TOO_LARGE = "dimensions-too-large"
    TOO_MANY_PIXELS = "too-many-pixels"
    TRUNCATED_IMAGE = "truncated-image"
    CORRUPT_IMAGE = "corrupt-image"
    DECODE_TIMEOUT = "decode-timeout"
    DECODE_MEMORY = "decode-memory"
    DECODER_CRASHED = "decoder-crashed"
    # The source of a fetch is refused (final).
    URL_NOT_ALLOWED = "url-not-allowed"
    SOURCE_NOT_FOUND = "source-not-found"
    SOURCE_REFUSED = "source-refused"
    NOT_AN_IMAGE = "not-an-image"
    TOO_MANY_REDIRECTS = "too-many-redirects"
    # The event is refused (dead letter).
    MALFORMED_EVENT = "malformed-event"
    UNKNOWN_EVENT = "unknown-event"
    REFERENCE_NOT_ALLOWED = "reference-not-allowed"
    PARAMETERS_NOT_ALLOWED = "parameters-not-allowed"
    # Processing failed (dead letter).
    DEPENDENCY_UNAVAILABLE = "dependency-unavailable"
    SOURCE_UNAVAILABLE = "source-unavailable"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    OBJECT_CHANGED = "object-changed"
    WORKER_CRASHED = "worker-crashed"
    ENGINE_FAILED = "engine-failed"
    INTERNAL_ERROR = "internal-error"
    # The work waits (not a failure).
    SOURCE_BUSY = "source-busy"
    # A stage was skipped (not a failure).
    MODEL_UNAVAILABLE = "model-unavailable"
    NOT_IN_PROFILE = "not-in-profile"
    GONE = "gone"
    SUPERSEDED = "superseded"


# Effect of a code -> code -> meaning and remedy; the source of docs/errors.md.
ERROR_MEANINGS: dict[str, dict[ErrorCode, str]] = {
    "The image is refused": {
        ErrorCode.UNSUPPORTED_FORMAT: "The file's first bytes match no supported format.",
        ErrorCode.EMPTY_FILE: "The file is empty.",
        ErrorCode.FILE_TOO_LARGE: "The file has more bytes than the stage's `max_bytes`.",
        ErrorCode.DIMENSIONS_TOO_LARGE: "The image is wider or higher than `max_side` pixels.",
        ErrorCode.TOO_MANY_PIXELS: "All frames of the image together, or a document's first page, exceed `max_pixels`, "
        "or there are more than `max_frames` frames or pages.",
        ErrorCode.TRUNCATED_IMAGE: "The file ends before the image does. Send the complete file.",
        ErrorCode.CORRUPT_IMAGE: "The file cannot be decoded: it is damaged, or a PDF with a password or no pages.",
        ErrorCode.DECODE_TIMEOUT: "Decoding exceeded its time limit: the file is malicious or too complex.",
        ErrorCode.DECODE_MEMORY: "Decoding exceeded its memory limit: the file is malicious or too large.",
        ErrorCode.DECODER_CRASHED: "The file crashed the decoder, which runs in an isolated process.",
    },
    "The source of a fetch is refused": {
        ErrorCode.URL_NOT_ALLOWED: "The URL, or an address it resolves to, must not be fetched: it is not http(s), has "
        "credentials, or is not public. Operators allow an intranet with `allowed_networks`.",
        ErrorCode.SOURCE_NOT_FOUND: "The source has no such file, or the host does not exist.",
        ErrorCode.SOURCE_REFUSED: "The source refuses the request, or its answer is unsupported.",
        ErrorCode.NOT_AN_IMAGE: "The first bytes of the answer match no supported format, e.g. an HTML page.",
        ErrorCode.TOO_MANY_REDIRECTS: "The source redirects more often than `max_redirects`.",
    },
    "The event is refused": {
        ErrorCode.MALFORMED_EVENT: "The message is not a valid event. Fix its producer, then replay.",
        ErrorCode.UNKNOWN_EVENT: "The event's type is unknown: a producer is newer than its readers.",
        ErrorCode.REFERENCE_NOT_ALLOWED: "The event names an object outside its owner's originals and results and its "
        "image's files, or another bucket. Fix its producer.",
        ErrorCode.PARAMETERS_NOT_ALLOWED: "The profile's parameters name an unknown stage or parameter, or a value the "
        "stage does not allow. The image is rejected; submit it again with others.",
    },
    "Processing failed": {
        ErrorCode.DEPENDENCY_UNAVAILABLE: "A service was unavailable in all retries. Replay when it is available.",
        ErrorCode.SOURCE_UNAVAILABLE: "The source of a fetch was unavailable in every try. Replay later.",
        ErrorCode.WORKER_CRASHED: "The worker crashed twice on the event, the second time processing it alone.",
        ErrorCode.ENGINE_FAILED: "The stage's model or codec raised an error on this image. The dead letter names it.",
        ErrorCode.DEADLINE_EXCEEDED: "The stage exceeded its `deadline_s`. Raise it or scale the stage, then replay.",
        ErrorCode.OBJECT_CHANGED: "The stored bytes differ from the event's hash: another process wrote to the store.",
        ErrorCode.INTERNAL_ERROR: "A bug in Darkroom. The dead letter has the stack trace; replay after the fix.",
    },
    "The work waits": {
        ErrorCode.SOURCE_BUSY: "The source's budget of requests is spent, or it asked to wait. The fetch continues by "
        "itself; `next_try_at` says when.",
    },
    "The stage was skipped": {
        ErrorCode.MODEL_UNAVAILABLE: "The stage's model is unavailable; the image completes without it.",
        ErrorCode.NOT_IN_PROFILE: "The image's profile omits the stage.",
        ErrorCode.GONE: "The image and its objects were deleted meanwhile.",
        ErrorCode.SUPERSEDED: "A newer generation of the image replaced this one.",
    },
}


class StageState(StrEnum):
    """State of one stage of one image."""

    PENDING = "pending"
    DONE = "done"
    SKIPPED = "skipped"
    REJECTED = "rejected"
    FAILED = "failed"


class ImageState(StrEnum):
    """State of an image. All but `processing` are final."""

    PROCESSING = "processing"
    COMPLETED = "completed"
    REJECTED = "rejected"
    FAILED = "failed"
    DELETED = "deleted"


# The one list of stage names, in pipeline order: topics, agents, filters, deployment files and docs derive from it.
# An analysis stage is one line here and one file, agents/stages/<name>.py (CONTRIBUTING.md, "Add a stage").
ANALYSIS_STAGES = (
    "resizer",
    "ocr",
    "detector",
    "embedder",
    "barcodes",
)
OPTIONAL_STAGES = frozenset({"barcodes"})  # analysis stages that an image passes only if its profile names them
REQUIRED_STAGES = ("sanitizer", *ANALYSIS_STAGES)
DEFAULT_STAGES = tuple(name for name in REQUIRED_STAGES if name not in OPTIONAL_STAGES)
STAGES = ("fetcher", *REQUIRED_STAGES, "indexer")


class Lane(StrEnum):
    """Priority of an image."""

    INTERACTIVE = "interactive"  # a client waits for it
    BULK = "bulk"  # processed with spare capacity, round-robin by owner


class Profile(Value):
    """Which stages this image must pass, with their parameters: a stage left out never blocks completion."""

    stages: tuple[str, ...] = DEFAULT_STAGES
    parameters: dict[str, dict[str, JsonValue]] = Field(default_factory=dict)

    def requires(self, stage: str) -> bool:
        """Say whether this image must pass the stage. The sanitizer is never optional."""
        return stage == "sanitizer" or stage in self.stages


RENDITION_SIDES: dict[str, int] = {
    "thumbnail": 150,
    "medium": 600,
    "large": 1200,
    "original": 4096,
}
"""Rendition name -> pixels of its longest side, by default. A rendition is never enlarged."""


class Rendition(Value):
    """One stored size of an image."""

    name: str = Field(examples=["thumbnail"])
    object: ObjectRef
    width: int = Field(gt=0, description="pixels")
    height: int = Field(gt=0, description="pixels")
    aspect_ratio: float = Field(gt=0, description="width / height")
    format: str = Field(examples=["webp"])


class TextWord(Value):
    """One word of a line of text. The polygon is as a line's."""

    text: str
    confidence: float = Field(ge=0, le=1)
    polygon: tuple[tuple[float, float], ...]


class TextSpan(Value):
    """One line of text, or its part in one cell of a table.

    The polygon is in pixels of the sanitized image, clockwise from the text's top left.
    """

    text: str
    confidence: float = Field(ge=0, le=1)
    polygon: tuple[tuple[float, float], ...]
    engine: str = Field(examples=["ppocr", "tesseract", "easyocr"])
    language: str = Field(default="en", description="BCP 47: a language if it is known, else `und` and the script")
    script: str | None = Field(default=None, description="ISO 15924; Zyyy: digits and signs only", examples=["Latn"])
    words: tuple[TextWord, ...] = ()
    block: int = Field(default=0, ge=0, description="number of its block, from 0")
    row: int = Field(default=0, ge=0, description="number of its row in the image, from 0; cells of a row share one")


class TextBlock(Value):
    """Rows of text that belong together. Its spans carry its number."""

    kind: str = Field(examples=["paragraph", "heading", "table"])
    polygon: tuple[tuple[float, float], ...]


class Box(Value):
    """An axis-aligned box: x and y of its top left, width, height; the field that contains it defines the unit."""

    x: float
    y: float
    width: float
    height: float


class DetectedObject(Value):
    """One object found in an image."""

    label: str
    confidence: float = Field(ge=0, le=1)
    box: Box = Field(description="fractions of the sanitized image's width and height, 0 to 1")
    pixels: Box = Field(description="pixels of the sanitized image")


class Vector(Value):
    """An embedding as little-endian float32 in base64: 512 dimensions take 2.7 KB of JSON."""

    data: str
    dimensions: int = Field(gt=0)

    @classmethod
    def of(cls, values: list[float]) -> Self:
        """Pack plain floats."""
        return cls(data=base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode(), dimensions=len(values))

    def values(self) -> list[float]:
        """Unpack to plain floats. Raises ValueError when data and dimensions disagree."""
        raw = base64.b64decode(self.data, validate=True)
        if len(raw) != 4 * self.dimensions:
            raise ValueError(f"vector has {len(raw)} bytes, not {self.dimensions} floats")
        return list(struct.unpack(f"<{self.dimensions}f", raw))


class ModelRef(Value):
    """Weights of a model: part of every result's lineage."""

    name: str
    sha256: str
    backend: str = Field(examples=["openvino", "torch"])


class Lineage(Value):
    """Origin of a result."""

    input_sha256: str
    stage: str
    stage_version: str
    code_version: str
    models: tuple[ModelRef, ...] = ()
    parameters: dict[str, JsonValue] = Field(default_factory=dict)
    parameters_hash: str
    duration_ms: int = Field(ge=0, description="time the computation took, when it was done")
    event_id: str
    trace_id: str | None = None
    computed_at: str = Field(description="RFC 3339, UTC")


class StageReport(Value):
    """What the runtime says of one stage's work on one image: travels in every fact."""

    stage: str
    version: str
    attempts: int = Field(ge=1)
    duration_ms: int = Field(ge=0)
    reused: bool = Field(default=False, description="the result was already there; nothing was computed")
    worker: str = ""
    result: ObjectRef | None = Field(default=None, description="where the result is stored, with its lineage")
