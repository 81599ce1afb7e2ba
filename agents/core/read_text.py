"""Text readers' protocols, and the merge of two engines' spans.

A span is one line of text. An engine with page layout analysis keeps its own order (Tesseract detects columns). Other
spans, and those of two engines, are ordered by `agents.core.text.layout`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from agents.core.text.geometry import Polygon, frame_of
from agents.core.text.page import laid_out
from schemas.values import TextSpan


class TextReader(Protocol):
    """Reads the text of an RGB or grey image as spans in reading order; without text, an empty list."""

    @property
    def name(self) -> str:
        """Name of the engine."""

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return the lines of an image, polygons in its pixels."""


class BoxReader(TextReader, Protocol):
    """A reader that can also detect text boxes without reading them, and read only some boxes."""

    def find(self, image: Image.Image) -> list[Polygon]:
        """Return the text boxes without reading them, which is the cheap half of the work."""

    def read_at(self, image: Image.Image, boxes: Sequence[Polygon]) -> list[TextSpan]:
        """Return the text at some of the boxes that `find` returned for this image."""


def covered(polygon: Polygon, by: Sequence[TextSpan]) -> float:
    """Return the share of a polygon's box that spans cover (spans of one engine hardly overlap each other)."""
    frame = frame_of(polygon)
    if not frame.area:
        return 1.0
    return min(sum(frame.shared(frame_of(span.polygon)) for span in by) / frame.area, 1.0)


def mean_confidence(spans: Sequence[TextSpan]) -> float:
    """Return the mean confidence weighted by length; 0 when there is no text."""
    letters = sum(len(span.text) for span in spans)
    return sum(span.confidence * len(span.text) for span in spans) / letters if letters else 0.0


def is_page(spans: Sequence[TextSpan], *, confidence: float, words: int) -> bool:
    """Return whether the spans are a well-read page of text: enough words, high confidence."""
    count = sum(len(span.text.split()) for span in spans)
    return count >= words and mean_confidence(spans) >= confidence


def merge(first: Sequence[TextSpan], second: Sequence[TextSpan], *, overlap: float = 0.5) -> list[TextSpan]:
    """Merge two engines' spans: where they overlap, the more confident side is kept; all other spans are added.

    Engines split lines differently, so one span is compared with all spans it overlaps by more than `overlap` of the
    smaller of the two.
    """
    kept = list(first)
    added: list[TextSpan] = []
    for span in sorted(second, key=lambda s: -s.confidence):
        rivals = [other for other in kept if _overlaps(span, other, overlap)]
        if not rivals:
            added.append(span)
        elif span.confidence > mean_confidence(rivals) and _letters([span]) >= 0.8 * _letters(rivals):
            kept = [other for other in kept if other not in rivals]
            added.append(span)
    return in_reading_order([*kept, *added]) if added else kept


def read_auto(
    image: Image.Image, page: TextReader, scene: BoxReader, *, sure: float = 0.6, page_words: int = 20
) -> list[TextSpan]:
    """Read with the page reader, and with the scene reader where the page reader read badly.

    A box of the scene reader is read again when less than half of it is covered by lines with a confidence of at least
    `sure`. A page of text (at least `page_words` words, mean confidence of at least 0.85) is not read again. Lines
    below `sure` where the scene reader finds no text are dropped as noise.
    """
    first = page.read(image)
    if is_page(first, confidence=0.85, words=page_words):
        return [span for span in first if span.confidence >= sure / 2]
    certain = [span for span in first if span.confidence >= sure]
    boxes = scene.find(image)
    badly = [box for box in boxes if covered(box, certain) < 0.5]
    second = scene.read_at(image, badly) if badly else []
    frames = [frame_of(box) for box in boxes]
    kept = [span for span in first if span in certain or any(frame_of(span.polygon).shared(f) for f in frames)]
    return merge(kept, second)


def _letters(spans: Sequence[TextSpan]) -> int:
    return sum(not letter.isspace() for span in spans for letter in span.text)


def _overlaps(a: TextSpan, b: TextSpan, share: float) -> bool:
    one, two = frame_of(a.polygon), frame_of(b.polygon)
    smaller = min(one.area, two.area)
    return smaller > 0 and one.shared(two) / smaller > share


def in_reading_order(spans: Sequence[TextSpan]) -> list[TextSpan]:
    """Return spans in reading order: columns left to right, lines top to bottom, within a line left to right."""
    return list(laid_out(spans).spans)
