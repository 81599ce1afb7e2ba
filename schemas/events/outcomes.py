"""Outcomes: the end of an image. For other services, webhooks and live progress."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from schemas.events.envelope import Event
from schemas.values import ErrorCode, StageState


class Outcome(Event):
    """The end of an image; the indexer emits one per generation."""

    stage: ClassVar[str] = "indexer"

    stages: dict[str, StageState] = Field(default_factory=dict)

    @property
    def state(self) -> str:
        """The image state of this outcome: the verb of its type."""
        return self.type.split(".")[2]


class ImageCompleted(Outcome):
    """Every required stage is done or skipped."""

    type: ClassVar[str] = "darkroom.image.completed.v1"


class ImageRejected(Outcome):
    """The image was rejected."""

    type: ClassVar[str] = "darkroom.image.rejected.v1"

    code: ErrorCode
    message: str


class ImageFailed(Outcome):
    """At least one required stage has a dead letter."""

    type: ClassVar[str] = "darkroom.image.failed.v1"

    code: ErrorCode
    message: str


class ImageDeleted(Outcome):
    """Only a tombstone is left."""

    type: ClassVar[str] = "darkroom.image.deleted.v1"


OUTCOMES: tuple[type[Event], ...] = (ImageCompleted, ImageRejected, ImageFailed, ImageDeleted)
