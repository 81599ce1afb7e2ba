"""Pages of text for the tests of the writers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from schemas.stored.results import TextPage
from schemas.values import TextSpan, TextWord

Polygon = tuple[tuple[float, float], ...]


def rectangle(left: float, top: float, right: float, bottom: float) -> Polygon:
    """Return the corners, clockwise from the top left."""
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def span(words: Sequence[str], top: float, *, by: str = " ", block: int = 0, row: int = 0, degrees: float = 0.0,
         right_to_left: bool = False, language: str = "en") -> TextSpan:  # fmt: skip
    """Return a line of words, 20 pixels high and 12 a letter, tilted clockwise about its left end (50, top)."""
    placed: list[TextWord] = []
    left = 50.0
    for word in reversed(words) if right_to_left else words:
        outline = rectangle(left, top, left + 12 * len(word), top + 20)
        placed.append(TextWord(text=word, confidence=0.9, polygon=turned(outline, degrees, (50.0, top))))
        left += 12 * (len(word) + len(by))
    return TextSpan(
        text=by.join(words),
        confidence=0.9,
        polygon=turned(rectangle(50, top, max(left - 12 * len(by), 51), top + 20), degrees, (50.0, top)),
        engine="ppocr",
        language=language,
        words=tuple(reversed(placed) if right_to_left else placed),
        block=block,
        row=row,
    )


def turned(polygon: Polygon, degrees: float, about: tuple[float, float]) -> Polygon:
    """Return a polygon turned clockwise, as seen on a screen."""
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return tuple(
        (about[0] + (x - about[0]) * cosine - (y - about[1]) * sine,
         about[1] + (x - about[0]) * sine + (y - about[1]) * cosine)
        for x, y in polygon
    )  # fmt: skip


def page(*spans: TextSpan, width: int = 800, height: int = 600) -> TextPage:
    """Return a page of lines."""
    return TextPage(width=width, height=height, content="\n".join(each.text for each in spans), spans=spans)
