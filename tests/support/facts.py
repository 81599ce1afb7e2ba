"""Facts of one image, for tests of their consumers."""

from __future__ import annotations

from schemas.events.facts import (
    Fact,
    ImageEmbedded,
    ImageRefused,
    ImageResized,
    ImageSanitized,
    ObjectsDetected,
    StageFailed,
    StageSkipped,
    TextRead,
)
from schemas.stored.results import SanitizedImage
from schemas.values import Box, DetectedObject, ErrorCode, ModelRef, ObjectRef, Profile, Rendition, StageReport, Vector
from streams.object_store.keys import image_key, original_key, result_key

MODEL = ModelRef(name="m", sha256="f" * 64, backend="torch")
WHEN = "2026-01-01T00:00:00.000Z"


def ref(letter: str, key: str | None = None) -> ObjectRef:
    """Return a claim check whose sha256 is one letter repeated."""
    return ObjectRef(bucket="darkroom", key=key or f"x/{letter}", sha256=letter * 64, size=1)


def report(stage: str) -> StageReport:
    """Return a stage report: one attempt, 5 ms."""
    return StageReport(stage=stage, version="1", attempts=1, duration_ms=5)


class Facts:
    """Builds the facts of one generation of one image."""

    def __init__(
        self,
        image_id: str,
        *,
        owner: str = "anna",
        generation: int = 1,
        run: int = 0,
        stages: tuple[str, ...] | None = None,
        placed: bool = False,
    ) -> None:
        """`placed`: objects have keys that the runtime accepts from this image and owner, else short ones."""
        profile = Profile() if stages is None else Profile(stages=stages)
        self._common = {
            "image_id": image_id, "owner": owner, "generation": generation, "run": run, "profile": profile,
            "occurred_at": WHEN,
        }  # fmt: skip
        self._keys = {
            "a": original_key(owner, "a" * 64),
            "c": image_key(image_id, generation, "master.png", run=run),
            "d": image_key(image_id, generation, "thumbnail.webp", run=run),
            "e": result_key(owner, "c" * 64, "ocr", "1", "p"),
        } if placed else {}  # fmt: skip

    def _ref(self, letter: str) -> ObjectRef:
        return ref(letter, self._keys.get(letter))

    def sanitized(self, *, source_url: str | None = None, original: ObjectRef | None = None) -> Fact:
        image = SanitizedImage(
            master=self._ref("c"), width=30, height=20, source_format="jpeg", frames=1, perceptual_hash="0" * 16,
            dominant_colour="#112233", thumbhash="AA==",
        )  # fmt: skip
        return ImageSanitized(
            **self._common, report=report("sanitizer"), original=original or self._ref("a"), image=image, bucket="trip",
            filename="me.jpg", context={"note": "private"}, submitted_at=WHEN, source_url=source_url,
        )  # fmt: skip

    def resized(self) -> Fact:
        thumbnail = Rendition(
            name="thumbnail", object=self._ref("d"), width=15, height=10, aspect_ratio=1.5, format="webp"
        )
        return ImageResized(**self._common, report=report("resizer"), renditions=(thumbnail,))

    def text(self, content: str = "Hello world") -> Fact:
        return TextRead(
            **self._common,
            report=report("ocr"),
            content=content,
            span_count=1,
            mean_confidence=0.9,
            result=self._ref("e"),
        )

    def detected(self, *labels: str) -> Fact:
        box = Box(x=0, y=0, width=1, height=1)
        objects = tuple(DetectedObject(label=label, confidence=0.9, box=box, pixels=box) for label in labels)
        return ObjectsDetected(**self._common, report=report("detector"), objects=objects, model=MODEL)

    def embedded(self, vector: list[float] | None = None) -> Fact:
        values = Vector.of([1.0] + [0.0] * 511 if vector is None else vector)
        return ImageEmbedded(**self._common, report=report("embedder"), vector=values, model=MODEL)

    def skipped(self, stage: str) -> Fact:
        return StageSkipped(
            **self._common, report=report(stage), reason=ErrorCode.MODEL_UNAVAILABLE, message="no weights"
        )

    def refused(self, stage: str = "sanitizer") -> Fact:
        return ImageRefused(
            **self._common, report=report(stage), code=ErrorCode.CORRUPT_IMAGE, message="The image is damaged.",
            bucket="trip", filename="me.jpg", context={"note": "private"}, submitted_at=WHEN,
        )  # fmt: skip

    def failed(self, stage: str) -> Fact:
        return StageFailed(
            **self._common, report=report(stage), code=ErrorCode.INTERNAL_ERROR, message="Internal error."
        )

    def all(self) -> list[Fact]:
        """Return the facts of an image that passes every stage."""
        return [self.sanitized(), self.resized(), self.text(), self.detected("person", "bus"), self.embedded()]
