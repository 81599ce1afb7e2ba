"""Blocks, lines and words of a page, with their boxes: what all writers share. Lengths are in pixels of the page."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby

from schemas.stored.results import TextPage
from schemas.values import TextSpan, TextWord

Polygon = tuple[tuple[float, float], ...]

# What XML 1.0 cannot hold (section 2.2), and CR, which a parser would read as LF.
_NOT_IN_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_LANGUAGE = re.compile(r"[A-Za-z]{1,8}(-[A-Za-z0-9]{1,8})*")  # xsd:language


@dataclass(frozen=True, slots=True)
class Box:
    """An axis-aligned box within its page, in whole pixels."""

    left: int
    top: int
    right: int
    bottom: int


@dataclass(frozen=True, slots=True)
class Word:
    """A word that XML can hold, and whether a space separates it from the next one."""

    text: str
    confidence: float
    polygon: Polygon
    spaced: bool


@dataclass(frozen=True, slots=True)
class Line:
    """A row of text, or its part in one cell of a table, with one word at least."""

    polygon: Polygon
    language: str  # BCP 47
    words: tuple[Word, ...]


def blocks_of(page: TextPage) -> Iterator[list[Line]]:
    """Yield the lines of each block that has any, in reading order."""
    for _, spans in groupby(page.spans, key=lambda span: span.block):
        lines = [
            Line(span.polygon, span.language if _LANGUAGE.fullmatch(span.language) else "und", words)
            for span in spans
            if (words := tuple(_words_of(span)))
        ]
        if lines:
            yield lines


def box_of(polygons: Iterable[Polygon], page: TextPage) -> Box:
    """Return the box around polygons, of which there is at least one, cut at the edges of the page."""
    points = [point for polygon in polygons for point in polygon]
    xs = [min(max(round(x), 0), page.width) for x, _ in points]
    ys = [min(max(round(y), 0), page.height) for _, y in points]
    return Box(min(xs), min(ys), max(xs), max(ys))


def corners_of(polygon: Polygon) -> Polygon:
    """Return the four corners of a quadrilateral, clockwise from the text's top left; of others, of the box around."""
    if len(polygon) == 4:
        return polygon
    xs, ys = [x for x, _ in polygon], [y for _, y in polygon]
    return ((min(xs), min(ys)), (max(xs), min(ys)), (max(xs), max(ys)), (min(xs), max(ys)))


def _words_of(span: TextSpan) -> Iterator[Word]:
    if not span.polygon:
        return
    after = 0
    for word in span.words or _estimated(span):
        at = span.text.find(word.text, after)
        after = at + len(word.text) if at >= 0 else after
        text = _NOT_IN_XML.sub("", word.text)
        if text.strip():
            spaced = at < 0 or span.text[after : after + 1].isspace()
            yield Word(text, word.confidence, word.polygon or span.polygon, spaced)


def _estimated(span: TextSpan) -> Iterator[TextWord]:
    """Yield the words of a line that was read without words: by their letters' share of its length."""
    a, b, c, d = corners_of(span.polygon)
    for run in re.finditer(r"\S+", span.text):
        start, end = (place / len(span.text) for place in run.span())
        polygon = (_between(a, b, start), _between(a, b, end), _between(d, c, end), _between(d, c, start))
        yield TextWord(text=run[0], confidence=span.confidence, polygon=polygon)


def _between(a: tuple[float, float], b: tuple[float, float], at: float) -> tuple[float, float]:
    return (a[0] + (b[0] - a[0]) * at, a[1] + (b[1] - a[1]) * at)
