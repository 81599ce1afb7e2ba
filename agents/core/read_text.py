"""Text readers' protocols, reading order, and the merge of two engines' spans.

A span is one line of text. An engine with page layout analysis keeps its own order (Tesseract detects columns). Other
spans, and those of two engines, are ordered by recursive XY-cut (Nagy and Seth 1984): cut along the widest white gap,
first between columns and bands, then between lines.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

from PIL import Image

from schemas.values import TextSpan

Polygon = tuple[tuple[float, float], ...]


class TextReader(Protocol):
    """Reads the text of an RGB or grey image as spans in reading order; without text, an empty list."""

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return the lines of an image, polygons in its pixels."""


class BoxReader(TextReader, Protocol):
    """A reader that can also detect text boxes without reading them, and read only some boxes."""

    def find(self, image: Image.Image) -> list[Polygon]:
        """Return the text boxes without reading them, which is the cheap half of the work."""

    def read_at(self, image: Image.Image, boxes: Sequence[Polygon]) -> list[TextSpan]:
        """Return the text at some of the boxes that `find` returned for this image."""


@dataclass(frozen=True, slots=True)
class Frame:
    """An axis-aligned box by its edges, in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    @property
    def area(self) -> float:
        """Area in pixels."""
        return max(self.right - self.left, 0.0) * max(self.bottom - self.top, 0.0)

    def shared(self, other: Frame) -> float:
        """Return the pixels that both boxes cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def frame_of(polygon: Polygon) -> Frame:
    """Return the box around a polygon."""
    xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
    return Frame(min(xs), min(ys), max(xs), max(ys))


def covered(polygon: Polygon, by: Sequence[TextSpan]) -> float:
    """Return the share of a polygon's box that spans cover (spans of one engine hardly overlap each other)."""
    frame = frame_of(polygon)
    if not frame.area:
        return 1.0
    return min(sum(frame.shared(frame_of(span.polygon)) for span in by) / frame.area, 1.0)


def rotated_back(polygon: Polygon, degrees: int, width: float, height: float) -> Polygon:
    """Map a polygon of an image rotated clockwise by 0, 90, 180 or 270 degrees back to the unrotated image.

    `width` and `height` are the unrotated ones. The order of the corners is kept: the first is the text's top left.
    """
    back: dict[int, Callable[[float, float], tuple[float, float]]] = {
        0: lambda x, y: (x, y),
        90: lambda x, y: (y, height - x),
        180: lambda x, y: (width - x, height - y),
        270: lambda x, y: (width - y, x),
    }
    return tuple(back[degrees](x, y) for x, y in polygon)


def scaled(spans: Sequence[TextSpan], factor: float) -> list[TextSpan]:
    """Return spans with their polygons multiplied by a factor."""
    if factor == 1.0:
        return list(spans)
    return [
        span.model_copy(update={"polygon": tuple((x * factor, y * factor) for x, y in span.polygon)}) for span in spans
    ]


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


def read_hybrid(image: Image.Image, page: TextReader, scene: TextReader) -> list[TextSpan]:
    """Read with both readers and merge the spans."""
    return merge(page.read(image), scene.read(image))


def _letters(spans: Sequence[TextSpan]) -> int:
    return sum(not letter.isspace() for span in spans for letter in span.text)


def _overlaps(a: TextSpan, b: TextSpan, share: float) -> bool:
    one, two = frame_of(a.polygon), frame_of(b.polygon)
    smaller = min(one.area, two.area)
    return smaller > 0 and one.shared(two) / smaller > share


def in_reading_order(spans: Sequence[TextSpan]) -> list[TextSpan]:
    """Return spans in reading order: columns left to right, lines top to bottom, within a line left to right."""
    if not spans:
        return []
    frames = [_core_of(span.polygon) for span in spans]
    heights = sorted(frame.bottom - frame.top for frame in frames)
    line = heights[len(heights) // 2] or 1.0
    return [spans[index] for index in _cut(list(range(len(spans))), frames, line)]


def _core_of(polygon: Polygon) -> Frame:
    """Return a box without its margins: detectors' boxes of neighbouring lines overlap."""
    frame = frame_of(polygon)
    margin = 0.2 * (frame.bottom - frame.top)
    return Frame(frame.left, frame.top + margin, frame.right, frame.bottom - margin)


def _cut(indexes: list[int], frames: Sequence[Frame], line: float) -> list[int]:
    if len(indexes) <= 1:
        return indexes
    across, gap_y = _split(indexes, lambda i: (frames[i].top, frames[i].bottom))
    down, gap_x = _split(indexes, lambda i: (frames[i].left, frames[i].right))
    # A gap between columns is wider than one between words, and a column has lines on both sides.
    columns = gap_x > line and all(_lines(part, frames, line) > 1 for part in down)
    if columns and gap_x >= gap_y:
        parts = down
    elif gap_y > 0:
        parts = across
    elif columns:
        parts = down
    else:
        return _rows(indexes, frames)
    return [index for part in parts for index in _cut(part, frames, line)]


def _split(indexes: list[int], span: Callable[[int], tuple[float, float]]) -> tuple[list[list[int]], float]:
    """Split the indexes at the widest gap of their projection; return the parts and its width, 0 if there is none."""
    ordered = sorted(indexes, key=lambda i: span(i)[0])
    end, widest, at = -math.inf, 0.0, 0
    for position, index in enumerate(ordered):
        low, high = span(index)
        if position and low - end > widest:
            widest, at = low - end, position
        end = max(end, high)
    return [ordered[:at], ordered[at:]], widest


def _lines(indexes: list[int], frames: Sequence[Frame], line: float) -> int:
    tops = sorted((frames[i].top + frames[i].bottom) / 2 for i in indexes)
    return 1 + sum(below - above > line / 2 for above, below in pairwise(tops))


def _rows(indexes: list[int], frames: Sequence[Frame]) -> list[int]:
    """Group boxes that no straight cut separates: boxes whose centres lie within each other's height share a row."""
    rows: list[list[int]] = []
    for index in sorted(indexes, key=lambda i: frames[i].top + frames[i].bottom):
        middle = (frames[index].top + frames[index].bottom) / 2
        last = frames[rows[-1][0]] if rows else None
        if last is not None and last.top <= middle <= last.bottom:
            rows[-1].append(index)
        else:
            rows.append([index])
    return [index for row in rows for index in sorted(row, key=lambda i: frames[i].left)]
