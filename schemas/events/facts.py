"""Facts about images. The indexer reads these, and only these."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field, JsonValue

from schemas.annotations import MAX_TAGS, Category, Tag
from schemas.events.envelope import Event, parameters_hash
from schemas.events.intake import Submission
from schemas.stored.results import SanitizedImage
from schemas.values import DetectedObject, ErrorCode, ModelRef, ObjectRef, Rendition, StageReport, Vector

TEXT_LIMIT = 32_768  # characters of text a fact carries; the whole text is in the stored result


class Fact(Event):
    """A fact about one stage of one image."""

    report: StageReport

    def producing_stage(self) -> str:
        return self.report.stage


class ImageSanitized(Submission, Fact):
    """The image was accepted, and its safe master is stored. Also the work event of the analysis stages."""

    type: ClassVar[str] = "darkroom.image.sanitized.v1"

    original: ObjectRef
    image: SanitizedImage
    source_url: str | None = None


class ImageResized(Fact):
    """The renditions are stored."""

    type: ClassVar[str] = "darkroom.image.resized.v1"

    renditions: tuple[Rendition, ...]


class TextRead(Fact):
    """The text was read; its spans are in the stored result."""

    type: ClassVar[str] = "darkroom.image.text-read.v1"

    content: str = Field(max_length=TEXT_LIMIT)
    span_count: int = Field(ge=0)
    mean_confidence: float = Field(ge=0, le=1)
    result: ObjectRef


class ObjectsDetected(Fact):
    """Objects were detected."""

    type: ClassVar[str] = "darkroom.image.objects-detected.v1"

    objects: tuple[DetectedObject, ...]
    model: ModelRef


class ImageEmbedded(Fact):
    """The vector was computed."""

    type: ClassVar[str] = "darkroom.image.embedded.v1"

    vector: Vector
    model: ModelRef


class StageCompleted(Fact):
    """A stage without a fact type of its own is done: its result, which the stage's result model validates."""

    type: ClassVar[str] = "darkroom.image.stage-completed.v1"

    result: dict[str, JsonValue] = Field(description="the result, as the stage's model writes it")


class StageSkipped(Fact):
    """A stage was skipped, with the reason; the image continues without it."""

    type: ClassVar[str] = "darkroom.image.stage-skipped.v1"

    reason: ErrorCode
    message: str


class ImageRefused(Submission, Fact):
    """The image was rejected because of its content: final, raises no alert."""

    type: ClassVar[str] = "darkroom.image.refused.v1"

    code: ErrorCode
    message: str = Field(description="a sentence for people")
    original: ObjectRef | None = Field(default=None, description="the bytes as received, if they are stored")


class StageFailed(Submission, Fact):
    """A stage failed; the event is in its dead letters and can be replayed."""

    type: ClassVar[str] = "darkroom.image.stage-failed.v1"

    code: ErrorCode
    message: str
    original: ObjectRef | None = Field(default=None, description="the bytes as received, if they are stored")


class StageRetrying(Submission):
    """A stage could not do its work now and will try again. No fact: the stage's state stays open until one comes."""

    type: ClassVar[str] = "darkroom.image.stage-retrying.v1"

    report: StageReport
    code: ErrorCode
    message: str = Field(description="a sentence for people: why the last try failed")
    next_try_at: str = Field(description="RFC 3339, UTC; the earliest time of the next try")
    original: ObjectRef | None = Field(default=None, description="the bytes as received, if they are stored")
    postponed: int = Field(
        default=0, ge=0, description="times the stage waited although nothing failed; 0: its last try failed"
    )

    def producing_stage(self) -> str:
        return self.report.stage

    def identity(self) -> str:
        return f"{self.report.attempts}.{self.postponed}" if self.postponed else str(self.report.attempts)


class DeletionRequested(Event):
    """The owner deleted the image: a new generation that leaves only a tombstone."""

    type: ClassVar[str] = "darkroom.image.deletion-requested.v1"
    stage: ClassVar[str] = "gateway"


class ImageAnnotated(Event):
    """The owner changed tags, category or metadata; the event has all of them, as they now are.

    The highest revision wins; of equal revisions, the later event. It applies to the image, not to one run: later
    generations keep it, until the image is deleted.
    """

    type: ClassVar[str] = "darkroom.image.annotated.v1"
    stage: ClassVar[str] = "gateway"

    revision: int = Field(ge=1, description="number of changes by the owner, including this one")
    tags: tuple[Tag, ...] = Field(default=(), max_length=MAX_TAGS)
    category: Category | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict, description="the client's metadata, returned unchanged")

    def identity(self) -> str:
        annotations = self.model_dump(mode="json", include={"tags", "category", "context"})
        return f"{self.revision} {parameters_hash(annotations)}"


FACTS: tuple[type[Event], ...] = (
    ImageSanitized,
    ImageResized,
    TextRead,
    ObjectsDetected,
    ImageEmbedded,
    StageCompleted,
    StageSkipped,
    ImageRefused,
    StageFailed,
    StageRetrying,
    DeletionRequested,
    ImageAnnotated,
)
