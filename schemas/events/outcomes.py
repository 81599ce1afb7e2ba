"""Outcomes: the end of an image. For other services, webhooks and live progress."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from schemas.events.envelope import Event
from schemas.events.intake import Submission
from schemas.values import ErrorCode, Rendition, StageState, Value

OUTCOME_TEXT_LIMIT = 4096  # characters of text an outcome carries; the whole text is in the job's result


class Links(Value):
    """Paths of the HTTP API, without scheme and host."""

    job: str = Field(description="the job's status")
    result: str = Field(description="the job's result, with the whole text and all positions")
    image: str = Field(description="the image's metadata")
    bytes: str = Field(description="the bytes of one size; with the query `size`, the name of a rendition")


class Outcome(Event):
    """The end of an image; the indexer emits one per generation."""

    stage: ClassVar[str] = "indexer"

    stages: dict[str, StageState] = Field(default_factory=dict)

    @property
    def state(self) -> str:
        """The image state of this outcome: the verb of its type."""
        return self.type.split(".")[2]


class Finished(Outcome, Submission):
    """An outcome that leaves an image: the fields of its submission, as its producer sent or its owner changed them,
    and what was found. What does not fit into a message is left out; the links always lead to it.
    """

    renditions: tuple[Rendition, ...] = Field(default=(), description="the stored sizes")
    labels: tuple[str, ...] = Field(default=(), description="of the detected objects, each once")
    text: str | None = Field(
        default=None, max_length=OUTCOME_TEXT_LIMIT, description="the beginning of the text, in reading order"
    )
    text_complete: bool = Field(default=True, description="false if the image has more text")
    links: Links | None = None


class ImageCompleted(Finished):
    """Every required stage is done or skipped."""

    type: ClassVar[str] = "darkroom.image.completed.v1"


class ImageRejected(Finished):
    """The image was rejected."""

    type: ClassVar[str] = "darkroom.image.rejected.v1"

    code: ErrorCode
    message: str


class ImageFailed(Finished):
    """At least one required stage has a dead letter."""

    type: ClassVar[str] = "darkroom.image.failed.v1"

    code: ErrorCode
    message: str


class ImageDeleted(Outcome):
    """Only a tombstone is left."""

    type: ClassVar[str] = "darkroom.image.deleted.v1"


OUTCOMES: tuple[type[Event], ...] = (ImageCompleted, ImageRejected, ImageFailed, ImageDeleted)
