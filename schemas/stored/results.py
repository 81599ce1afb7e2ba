"""Results of stages: the body of the stored result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Self

from pydantic import Field

from schemas.values import DetectedObject, ModelRef, ObjectRef, Rendition, TextBlock, TextSpan, Value, Vector


class StageResult(Value):
    """A computed result. Subclasses that stored objects list them, so that the runtime can copy them."""

    def objects(self) -> Mapping[str, ObjectRef]:
        """Return the objects the stage wrote for this result, by file name within the image's folder."""
        return {}

    def with_objects(self, objects: Mapping[str, ObjectRef]) -> Self:
        """Return the same result with references to other copies of its objects."""
        return self

    def models(self) -> tuple[ModelRef, ...]:
        """Return the weights that computed it."""
        return ()


def file_name(ref: ObjectRef) -> str:
    """Return an object's name within the image's folder."""
    return ref.key.rsplit("/", 1)[-1]


class FetchedOriginal(StageResult):
    """Bytes fetched from a URL."""

    original: ObjectRef
    final_url: str
    http_status: int


class Colour(Value):
    """One colour of the palette."""

    hex: str = Field(pattern=r"^#[0-9A-F]{6}$")
    share: float = Field(ge=0, le=1, description="share of the image's pixels")


class CaptureDetails(Value):
    """Private: stored only if the sanitizer's settings say so."""

    captured_at: str | None = None
    camera: str | None = None


class PageImage(Value):
    """A page of a document after the first, as safe as a master."""

    number: int = Field(ge=2, description="of the page in the file, from 1")
    object: ObjectRef
    width: int = Field(gt=0, description="pixels, upright")
    height: int = Field(gt=0, description="pixels, upright")


class SanitizedImage(StageResult):
    """A safe, upright, metadata-free sRGB image and its properties. The master of a document is its first page."""

    master: ObjectRef
    width: int = Field(gt=0, description="pixels, upright")
    height: int = Field(gt=0, description="pixels, upright")
    source_format: str = Field(examples=["jpeg"])
    frames: int = Field(ge=1, description="frames of an animation, or all pages of a document")
    has_alpha: bool = False
    perceptual_hash: str = Field(description="64-bit pHash, 16 hex digits")
    dominant_colour: str = Field(pattern=r"^#[0-9A-F]{6}$")
    palette: tuple[Colour, ...] = ()
    thumbhash: str = Field(description="ThumbHash, base64")
    capture: CaptureDetails | None = None
    pages: tuple[PageImage, ...] = Field(
        default=(), description="of a document, the pages after the first that were taken and can be read"
    )

    def objects(self) -> Mapping[str, ObjectRef]:
        return {file_name(ref): ref for ref in (self.master, *(page.object for page in self.pages))}

    def with_objects(self, objects: Mapping[str, ObjectRef]) -> Self:
        pages = (page.model_copy(update={"object": objects[file_name(page.object)]}) for page in self.pages)
        return self.model_copy(update={"master": objects[file_name(self.master)], "pages": tuple(pages)})


class ResizedImage(StageResult):
    """The renditions of an image, largest last."""

    renditions: tuple[Rendition, ...]

    def objects(self) -> Mapping[str, ObjectRef]:
        return {file_name(r.object): r.object for r in self.renditions}

    def with_objects(self, objects: Mapping[str, ObjectRef]) -> Self:
        moved = (r.model_copy(update={"object": objects[file_name(r.object)]}) for r in self.renditions)
        return self.model_copy(update={"renditions": tuple(moved)})


class EngineReading(Value):
    """What one of several engines read by itself."""

    engine: str = Field(examples=["tesseract"])
    content: str
    spans: tuple[TextSpan, ...]


class TextPage(Value):
    """The text of one page of a document, in pixels of that page."""

    number: int = Field(default=1, ge=1, description="of the page in the file, from 1")
    width: int = Field(gt=0, description="pixels, upright")
    height: int = Field(gt=0, description="pixels, upright")
    content: str
    spans: tuple[TextSpan, ...] = ()
    blocks: tuple[TextBlock, ...] = ()
    rotation: int = 0
    tilt: float = 0.0


class ReadText(StageResult):
    """The text of an image in reading order. No spans means no text was found, which is a result.

    Spans and blocks are those of the first page; `content` is the text of all pages, separated by form feeds.
    """

    content: str
    spans: tuple[TextSpan, ...]
    policy: str = Field(examples=["auto"])
    engines: tuple[ModelRef, ...] = ()
    blocks: tuple[TextBlock, ...] = ()
    rotation: int = Field(default=0, description="degrees clockwise that would make the text upright: 0, 90, 180, 270")
    tilt: float = Field(default=0.0, description="degrees clockwise that the lines are tilted, after that rotation")
    notes: tuple[str, ...] = Field(default=(), description="what could not be read, and why")
    readings: tuple[EngineReading, ...] = Field(default=(), description="`hybrid`: what each engine read by itself")
    pages: tuple[TextPage, ...] = Field(default=(), description="every page, the first included, if there are several")

    def models(self) -> tuple[ModelRef, ...]:
        return self.engines


class DetectedObjects(StageResult):
    """The objects of an image, most confident first."""

    objects_found: tuple[DetectedObject, ...]
    model: ModelRef

    def models(self) -> tuple[ModelRef, ...]:
        return (self.model,)


class ImageEmbedding(StageResult):
    """The L2-normalised CLIP vector of an image."""

    vector: Vector
    model: ModelRef

    def models(self) -> tuple[ModelRef, ...]:
        return (self.model,)
