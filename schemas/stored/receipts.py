"""The gateway's receipt of an accepted request, stored before the client gets 202."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.values import ID_PATTERN, OWNER_PATTERN, Lane, ObjectRef, Profile, Value


class ReceiptKind(StrEnum):
    """Kind of the request."""

    UPLOAD = "upload"
    FETCH = "fetch"
    DELETE = "delete"
    REPROCESS = "reprocess"


class Receipt(Value):
    """One accepted request: the source of a job's status until the read model has the image."""

    job_id: str
    image_id: str = Field(pattern=ID_PATTERN)
    owner: str = Field(pattern=OWNER_PATTERN)
    generation: int = Field(ge=1)
    kind: ReceiptKind
    submitted_at: str = Field(description="RFC 3339, UTC")
    first_submitted_at: str | None = Field(default=None, description="of a rerun: when the image was accepted")
    lane: Lane = Lane.INTERACTIVE
    bucket: str = "default"
    filename: str | None = None
    tags: tuple[Tag, ...] = Field(default=(), max_length=MAX_TAGS)
    category: Category | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)
    revision: int = Field(default=0, ge=0, description="of tags, category and context, of a rerun")
    profile: Profile = Field(default_factory=Profile)
    original: ObjectRef | None = Field(default=None, description="the original, of an upload or rerun")
    url: str | None = Field(default=None, description="the source URL, of a fetch or its rerun")
