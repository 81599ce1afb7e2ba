"""The words events are made of: ids, object references, renditions, text spans, boxes, vectors, codes."""

from __future__ import annotations

import base64
import secrets
import struct
import threading
import time
import uuid
from enum import StrEnum
from typing import NewType, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue

ImageId = NewType("ImageId", str)
JobId = NewType("JobId", str)
Owner = NewType("Owner", str)

DEFAULT_OWNER = Owner("default")
ID_PATTERN = r"^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"
OWNER_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
SHA256_PATTERN = r"^[0-9a-f]{64}$"


class Value(BaseModel):
    """A frozen wire value. Unknown fields are ignored, so that an older reader survives a newer writer."""

    model_config = ConfigDict(frozen=True, extra="ignore")


_id_lock = threading.Lock()
_last_id = (0, 0)  # milliseconds, and the 74 bits after them


def new_image_id() -> ImageId:
    """Return a UUIDv7 as text, greater than every one this process made before.

    RFC 9562, sections 5.7 and 6.2 (method 2): 48 bits of unix milliseconds, then 74 random bits; within a millisecond,
    or when the clock went back, the ones before plus a random step.
    """
    global _last_id  # noqa: PLW0603 - what was given out is a fact of the process
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
    """Return when an image id was made, unix seconds: a UUIDv7 begins with its milliseconds."""
    return (uuid.UUID(image_id).int >> 80) / 1000


def earliest_id(at: float) -> ImageId:
    """Return the least image id that can be made at a time, unix seconds: where a walk by age begins."""
    return ImageId(str(uuid.UUID(int=max(0, min(int(at * 1000), (1 << 48) - 1)) << 80)))


def job_id_of(image_id: str, generation: int) -> JobId:
    """Return the id of one run of one image: any producer can compute it, none needs to be asked."""
    return JobId(f"{image_id}.{generation}")


def split_job_id(job_id: str) -> tuple[ImageId, int]:
    """Return the image id and generation a job id names. Raises ValueError if it is not one."""
    image_id, _, generation = job_id.partition(".")
    uuid.UUID(image_id)
    if not generation.isascii() or not generation.isdigit() or len(generation) > 9:
        raise ValueError(f"not a job id: {job_id[:80]!r}")
    return ImageId(image_id), int(generation)


class ObjectRef(Value):
    """A claim check: where the bytes are, and what they must be."""

    bucket: str
    key: str
    sha256: str = Field(pattern=SHA256_PATTERN)
    size: int = Field(ge=0, description="bytes")
    content_type: str = "application/octet-stream"


class ErrorCode(StrEnum):
    """Every reason an image, an event or a request can be refused: metric label, API field, documentation anchor."""

    # The image is refused (final, nobody is paged).
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
    # Processing failed (dead letter).
    DEPENDENCY_UNAVAILABLE = "dependency-unavailable"
    SOURCE_UNAVAILABLE = "source-unavailable"
    DEADLINE_EXCEEDED = "deadline-exceeded"
    OBJECT_CHANGED = "object-changed"
    WORKER_CRASHED = "worker-crashed"
    INTERNAL_ERROR = "internal-error"
    # A stage was skipped (not a failure).
    MODEL_UNAVAILABLE = "model-unavailable"
    NOT_IN_PROFILE = "not-in-profile"
    GONE = "gone"
    SUPERSEDED = "superseded"


# How each code ends an event -> the code -> what it means and what helps; docs/errors.md is made of it.
ERROR_MEANINGS: dict[str, dict[ErrorCode, str]] = {
    "The image is refused": {
        ErrorCode.UNSUPPORTED_FORMAT: "By its first bytes the file is of no format that is taken.",
        ErrorCode.EMPTY_FILE: "The file has no bytes.",
        ErrorCode.FILE_TOO_LARGE: "The file has more bytes than the stage's `max_bytes`.",
        ErrorCode.DIMENSIONS_TOO_LARGE: "The image is wider or higher than `max_side` pixels.",
        ErrorCode.TOO_MANY_PIXELS: "All frames together have more pixels than `max_pixels`, or are too many.",
        ErrorCode.TRUNCATED_IMAGE: "The file ends before the image does: send it again, whole.",
        ErrorCode.CORRUPT_IMAGE: "The file cannot be decoded.",
        ErrorCode.DECODE_TIMEOUT: "Decoding took longer than it may: the file is built to be slow, or is too complex.",
        ErrorCode.DECODE_MEMORY: "Decoding needs more memory than it may: the file is built to explode, or too large.",
        ErrorCode.DECODER_CRASHED: "The decoder died on the file; its process was a throw-away, nothing else suffered.",
    },
    "The source of a fetch is refused": {
        ErrorCode.URL_NOT_ALLOWED: "The URL, or an address it leads to, is none that is fetched from: not http(s), "
        "with credentials, or not public. An operator allows an intranet with `allowed_networks`.",
        ErrorCode.SOURCE_NOT_FOUND: "The source has no such file, or there is no such host.",
        ErrorCode.SOURCE_REFUSED: "The source does not give the file to us, or not in a way we can take.",
        ErrorCode.NOT_AN_IMAGE: "What the source sent is, by its first bytes, no image that is taken; a page, perhaps.",
        ErrorCode.TOO_MANY_REDIRECTS: "The source redirects more often than `max_redirects`.",
    },
    "The event is refused": {
        ErrorCode.MALFORMED_EVENT: "The message is not a readable event: its producer must be mended, then replay.",
        ErrorCode.UNKNOWN_EVENT: "No such event is read here: a producer is newer than its readers.",
    },
    "Processing failed": {
        ErrorCode.DEPENDENCY_UNAVAILABLE: "A service was away for longer than all retries: when it is back, replay.",
        ErrorCode.SOURCE_UNAVAILABLE: "The source of a fetch did not answer, however often it was asked: replay later.",
        ErrorCode.WORKER_CRASHED: "Its worker died twice while it worked on this, the second time on nothing else.",
        ErrorCode.DEADLINE_EXCEEDED: "The stage took longer than its `deadline_s`: raise it or scale, then replay.",
        ErrorCode.OBJECT_CHANGED: "The stored bytes are not those the event speaks of: somebody writes to the store.",
        ErrorCode.INTERNAL_ERROR: "A bug of ours: the dead letter has the stack; when it is mended, replay.",
    },
    "The stage was skipped": {
        ErrorCode.MODEL_UNAVAILABLE: "The stage's model is not there; the image goes on without it.",
        ErrorCode.NOT_IN_PROFILE: "The image's profile leaves the stage out.",
        ErrorCode.GONE: "The image was deleted meanwhile, with its objects.",
        ErrorCode.SUPERSEDED: "A newer generation of the image has taken over.",
    },
}


class StageState(StrEnum):
    """Where one stage of one image stands."""

    PENDING = "pending"
    DONE = "done"
    SKIPPED = "skipped"
    REJECTED = "rejected"
    FAILED = "failed"


class ImageState(StrEnum):
    """Where an image stands. All but `processing` are final."""

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
)
REQUIRED_STAGES = ("sanitizer", *ANALYSIS_STAGES)
STAGES = ("fetcher", *REQUIRED_STAGES, "indexer")


class Lane(StrEnum):
    """How soon an image is worked on."""

    INTERACTIVE = "interactive"  # somebody waits for it
    BULK = "bulk"  # when there is room, owners taking turns


class Profile(Value):
    """Which stages this image must pass, with their parameters: a stage left out never blocks completion."""

    stages: tuple[str, ...] = REQUIRED_STAGES
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


class TextSpan(Value):
    """One piece of text. The polygon is in pixels of the sanitized image, clockwise from the text's top left."""

    text: str
    confidence: float = Field(ge=0, le=1)
    polygon: tuple[tuple[float, float], ...]
    engine: str = Field(examples=["tesseract", "easyocr"])
    language: str = "en"


class Box(Value):
    """An axis-aligned box: x and y of its top left, width, height; unit as the field that holds it says."""

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
            raise ValueError(f"vector holds {len(raw)} bytes, not {self.dimensions} floats")
        return list(struct.unpack(f"<{self.dimensions}f", raw))


class ModelRef(Value):
    """Which weights answered: part of every result's lineage."""

    name: str
    sha256: str
    backend: str = Field(examples=["openvino", "torch"])


class Lineage(Value):
    """Where a result comes from."""

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
