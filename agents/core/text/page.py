"""The text of an image as a page: lines in reading order, in rows and blocks, with what is known of the whole."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from statistics import median

from agents.core.text.geometry import Polygon, around, frame_of
from agents.core.text.layout import arrange, kind_of
from agents.core.text.scripts import RIGHT_TO_LEFT, script_of
from schemas.values import TextBlock, TextSpan

_STRAIGHT = 0.3  # degrees: a smaller tilt is the detector's rounding


@dataclass(frozen=True, slots=True)
class Page:
    """Lines in reading order. `rotation` and `tilt` as in ReadText."""

    spans: tuple[TextSpan, ...] = ()
    blocks: tuple[TextBlock, ...] = ()
    rotation: int = 0
    tilt: float = 0.0
    notes: tuple[str, ...] = ()

    @property
    def content(self) -> str:
        """The text, one row a line; the cells of a row are separated by a space."""
        return content_of(self.spans)

    def scaled(self, factor: float) -> Page:
        """Return the page with all polygons multiplied by a factor."""
        if factor == 1.0:
            return self
        spans = tuple(_scaled_span(span, factor) for span in self.spans)
        blocks = tuple(block.model_copy(update={"polygon": _scaled(block.polygon, factor)}) for block in self.blocks)
        return replace(self, spans=spans, blocks=blocks)


def content_of(spans: Sequence[TextSpan]) -> str:
    """Return the text of spans in reading order: spans of one row on one line."""
    rows: list[list[str]] = []
    last: tuple[int, int] | None = None
    for span in spans:
        if not rows or (span.block, span.row) != last:
            rows.append([])
        rows[-1].append(span.text)
        last = (span.block, span.row)
    return "\n".join(" ".join(row) for row in rows)


def laid_out(spans: Sequence[TextSpan], *, rotation: int = 0, notes: tuple[str, ...] = ()) -> Page:
    """Return spans, in any order, as a page in reading order, with the numbers of their rows and blocks."""
    tilt = tilt_of([span.polygon for span in spans], rotation)
    right_to_left = script_of("".join(span.text for span in spans)) in RIGHT_TO_LEFT
    frames = [frame_of(levelled(span.polygon, tilt - rotation)) for span in spans]
    ordered: list[TextSpan] = []
    row = 0
    for number, block in enumerate(arrange(frames, right_to_left=right_to_left)):
        for cells in block.rows:
            ordered += [spans[index].model_copy(update={"block": number, "row": row}) for index in cells]
            row += 1
    return page_of(ordered, rotation=rotation, notes=notes)


def page_of(spans: Sequence[TextSpan], *, rotation: int = 0, notes: tuple[str, ...] = ()) -> Page:
    """Return spans that an engine has put in order, with its numbers of blocks and rows, as a page."""
    if not spans:
        return Page(rotation=rotation, notes=notes)
    tilt = tilt_of([span.polygon for span in spans], rotation)
    frames = [frame_of(levelled(span.polygon, tilt - rotation)) for span in spans]
    line = median(frame.height for frame in frames) or 1.0
    ordered: list[TextSpan] = []
    blocks: list[TextBlock] = []
    row = 0
    for _, block in groupby(range(len(spans)), key=lambda i: spans[i].block):
        rows = [list(cells) for _, cells in groupby(block, key=lambda i: spans[i].row)]
        members = [index for cells in rows for index in cells]
        for cells in rows:
            ordered += [spans[index].model_copy(update={"block": len(blocks), "row": row}) for index in cells]
            row += 1
        outline = levelled(around(frames[index] for index in members).corners, rotation - tilt)
        blocks.append(TextBlock(kind=kind_of(rows, frames, line).value, polygon=outline))
    return Page(tuple(ordered), tuple(blocks), rotation, tilt, notes)


def tilt_of(polygons: Sequence[Polygon], rotation: int) -> float:
    """Return by how many degrees clockwise lines are tilted, beyond a rotation: the median, weighted by length."""
    angles: list[tuple[float, float]] = []
    for polygon in polygons:
        (ax, ay), (bx, by) = polygon[0], polygon[1]
        length = math.dist(polygon[0], polygon[1])
        if length > 1.5 * math.dist(polygon[1], polygon[2]):
            angle = math.degrees(math.atan2(by - ay, bx - ax)) + rotation
            angles.append(((angle + 180) % 360 - 180, length))
    if not angles:
        return 0.0
    angles.sort()
    half, passed = sum(length for _, length in angles) / 2, 0.0
    for angle, length in angles:
        passed += length
        if passed >= half:
            return angle if _STRAIGHT < abs(angle) <= 45 else 0.0
    return 0.0


def levelled(polygon: Polygon, degrees: float) -> Polygon:
    """Return a polygon rotated counterclockwise (as seen on a screen) about the origin: lines at this angle lie."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return tuple((round(x * cosine + y * sine, 2), round(y * cosine - x * sine, 2)) for x, y in polygon)


def _scaled(polygon: Polygon, factor: float) -> Polygon:
    return tuple((x * factor, y * factor) for x, y in polygon)


def _scaled_span(span: TextSpan, factor: float) -> TextSpan:
    words = tuple(word.model_copy(update={"polygon": _scaled(word.polygon, factor)}) for word in span.words)
    return span.model_copy(update={"polygon": _scaled(span.polygon, factor), "words": words})
