"""Work events, which start an agent's work. Other services may produce the first two."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, ClassVar
from urllib.parse import urlsplit

from pydantic import Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.events.envelope import Event
from schemas.values import ObjectRef

SUBMISSION = ("bucket", "filename", "tags", "category", "context", "revision", "submitted_at")
"""Fields of a submission, copied from event to event and into receipts and records."""


class Submission(Event):
    """The client's fields, copied to all later events so that the read model can return them."""

    bucket: str = Field(default="default", max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    filename: str | None = Field(default=None, max_length=255)
    tags: tuple[Tag, ...] = Field(default=(), max_length=MAX_TAGS)
    category: Category | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict, description="the client's metadata, returned unchanged")
    revision: int = Field(
        default=0, ge=0, description="number of the owner's changes to tags, category and context; in reruns"
    )
    submitted_at: str | None = Field(default=None, description="RFC 3339, UTC; when the pipeline accepted the image")

    def submission_fields(self) -> dict[str, Any]:
        """Return the submission's fields for the next event."""
        return {name: getattr(self, name) for name in SUBMISSION} | {
            "submitted_at": self.submitted_at or self.occurred_at
        }


class ImageUploaded(Submission):
    """The original is in the object store and has to be sanitized."""

    type: ClassVar[str] = "darkroom.image.uploaded.v1"
    stage: ClassVar[str] = "gateway"

    original: ObjectRef


class FetchPriority(StrEnum):
    """How urgent a fetch is: less urgent ones may use only a part of a source's budget."""

    INTERACTIVE = "interactive"  # a client waits for it
    BATCH = "batch"
    BACKGROUND = "background"  # warms the cache


class FetchRequested(Submission):
    """An image has to be fetched from a URL. Keyed by source host, so that one fetcher owns a source's budget."""

    type: ClassVar[str] = "darkroom.image.fetch-requested.v1"
    stage: ClassVar[str] = "gateway"

    url: str = Field(max_length=4096)
    priority: FetchPriority = FetchPriority.INTERACTIVE
    refresh: bool = Field(default=False, description="ask the source although its last answer is still valid")

    def key(self) -> bytes:
        try:
            return (urlsplit(self.url).hostname or "").encode() or self.image_id.encode()
        except ValueError:
            return self.image_id.encode()


class ImageFetched(Submission):
    """The fetcher stored the original, which has to be sanitized."""

    type: ClassVar[str] = "darkroom.image.fetched.v1"
    stage: ClassVar[str] = "fetcher"

    original: ObjectRef
    url: str
