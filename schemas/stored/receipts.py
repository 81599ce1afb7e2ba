"""The gateway's receipt: what was accepted, kept in the object store before the client hears 202."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.values import ID_PATTERN, OWNER_PATTERN, Lane, ObjectRef, Profile, Value


class ReceiptKind(StrEnum):
    """What the client asked for."""

    UPLOAD = "upload"
    FETCH = "fetch"
    DELETE = "delete"
    REPROCESS = "reprocess"


class Receipt(Value):
    """One accepted request: the answer to every question about a job until the read model knows of it."""

    job_id: str
    image_id: str = Field(pattern=ID_PATTERN)
    owner: str = Field(pattern=OWNER_PATTERN)
    generation: int = Field(ge=1)
    kind: ReceiptKind
    submitted_at: str = Field(description="RFC 3339, UTC")
    first_submitted_at: str | None = Field(default=None, description="of a rerun: when the image itself was accepted")
    lane: Lane = Lane.INTERACTIVE
    bucket: str = "default"
    filename: str | None = None
    tags: tuple[Tag, ...] = Field(default=(), max_length=MAX_TAGS)
    category: Category | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)
    revision: int = Field(default=0, ge=0, description="of tags, category and context, of a rerun")
    profile: Profile = Field(default_factory=Profile)
    original: ObjectRef | None = Field(default=None, description="the bytes as received, of an upload or a rerun")
    url: str | None = Field(default=None, description="the source, of a fetch, or of a rerun of what was fetched")
