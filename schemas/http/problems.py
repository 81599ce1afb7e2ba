"""Problem details (RFC 9457): the closed list of codes and the body."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from schemas.values import Value


class ProblemCode(StrEnum):
    """Every reason for which a request is refused. Part of the problem's `type`; its meaning never changes."""

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
    """One of several errors of a request."""

    field: str = Field(description="location: a form field, a parameter, or a path in the JSON body")
    detail: str


class ProblemBody(Value):
    """An error: RFC 9457, application/problem+json."""

    type: str = Field(examples=["urn:darkroom:problem:not-found"])
    code: str = Field(description="one of ProblemCode; the end of `type`")
    title: str
    status: int
    detail: str
    instance: str = Field(description="path of the request")
    correlation_id: str | None = None
    errors: tuple[ProblemItem, ...] = ()
