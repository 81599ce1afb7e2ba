"""Work events: what tells an agent to do something. Another service may produce the first two itself."""

from __future__ import annotations

from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, JsonValue

from schemas.envelope import Event
from schemas.values import ObjectRef


class Submission(Event):
    """What the client said of its image; carried along so that the read model can answer with it."""

    bucket: str = Field(default="default", max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    filename: str | None = Field(default=None, max_length=255)
    context: dict[str, JsonValue] = Field(default_factory=dict, description="the client's metadata, returned as it is")
    submitted_at: str | None = Field(default=None, description="RFC 3339, UTC; when the pipeline accepted the image")


class ImageUploaded(Submission):
    """The original bytes are in the object store: make them safe."""

    type: ClassVar[str] = "darkroom.image.uploaded.v1"
    stage: ClassVar[str] = "gateway"

    original: ObjectRef


class FetchRequested(Submission):
    """Bring an image from a URL. Keyed by source host, so that one fetcher owns a source's budget."""

    type: ClassVar[str] = "darkroom.image.fetch-requested.v1"
    stage: ClassVar[str] = "gateway"

    url: str = Field(max_length=4096)

    def key(self) -> bytes:
        try:
            return (urlsplit(self.url).hostname or "").encode() or self.image_id.encode()
        except ValueError:
            return self.image_id.encode()


class ImageFetched(Submission):
    """The fetcher brought the original bytes into the object store: make them safe."""

    type: ClassVar[str] = "darkroom.image.fetched.v1"
    stage: ClassVar[str] = "fetcher"

    original: ObjectRef
    url: str
