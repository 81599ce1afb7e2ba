"""Page layout: which boxes form a row, a column, a table, a heading, and the order in which they are read.

A region is divided along the best gutter: a vertical gap with text on both sides of it. Lines that cross the gutter
and have no text beside them (headlines, footers) divide the region from top to bottom; those that have text on both
sides (captions, pull quotes) are read after the columns around them (Breuel 2003 calls these gap, span and float).
Columns are read one after the other; the cells of a table row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import median

import numpy as np

from agents.core.text.geometry import Frame, around

_GUTTER = 0.8  # line heights a gutter is wide, at least
_FLOATS = 0.2  # share of a region's boxes that may lie across a gutter with text on both sides
_FLOAT_COST = 2.0  # line heights of columns that a box across the gutter counts against it
_CELL = 6.0  # line heights: of rows level with each other, narrower ones are cells, wider ones lines of columns
_BODY = 0.2  # share of a box's height that is margin at either side: detectors' boxes of neighbouring lines overlap


class BlockKind(StrEnum):
    """What a block is."""

    PARAGRAPH = "paragraph"
    HEADING = "heading"
    TABLE = "table"


@dataclass(frozen=True, slots=True)
class Block:
    """Rows that belong together, each with the indexes of its boxes in reading order."""

    kind: BlockKind
    rows: tuple[tuple[int, ...], ...]


def arrange(frames: Sequence[Frame], *, right_to_left: bool = False) -> list[Block]:
    """Return the blocks of a page in reading order; every box is in one row of one block.

    The boxes are those of upright lines, or parts of lines. `right_to_left`: columns and cells begin at the right.
    """
    if not frames:
        return []
    boxes = [_mirrored(frame) if right_to_left else frame for frame in frames]
    page = _Page([_body(frame) for frame in boxes])
    line = median(frame.height for frame in boxes) or 1.0
    blocks: list[Block] = []
    for rows in page.columns(list(range(len(boxes)))):
        blocks += _blocks(rows, boxes, line)
    return blocks


def _mirrored(frame: Frame) -> Frame:
    return Frame(-frame.right, frame.top, -frame.left, frame.bottom)


def _body(frame: Frame) -> Frame:
    margin = _BODY * frame.height
    return Frame(frame.left, frame.top + margin, frame.right, frame.bottom - margin)


Rows = list[list[int]]


@dataclass(frozen=True, slots=True)
class _Gutter:
    """A vertical gap at x, and the parts of the region from top to bottom: lines across, or columns and floats."""

    # Pixels of height with text on both sides, less what lies across; of equal ones, the one with fewer lines across.
    worth: tuple[float, int]
    parts: list[_Part]


@dataclass(frozen=True, slots=True)
class _Part:
    across: list[int]  # alone: a part of lines without columns
    left: list[int]
    right: list[int]
    floats: list[int]


class _Page:
    """The bodies of all boxes of a page."""

    def __init__(self, bodies: Sequence[Frame]) -> None:
        self.bodies = bodies
        self.line = median(body.height for body in bodies) / (1 - 2 * _BODY) or 1.0
        self._edges = np.array([(body.left, body.top, body.right, body.bottom) for body in bodies])

    def columns(self, region: list[int]) -> Iterator[Rows]:
        """Yield the rows of each column of a region, in reading order."""
        gutter = self._best_gutter(region) if len(region) >= 4 else None
        if gutter is None:
            yield self.rows(region)
            return
        for part in gutter.parts:
            if part.across:
                yield from self.columns(part.across)
            elif part.left and part.right:
                for side in (part.left, part.right, part.floats):
                    if side:
                        yield from self.columns(side)
            else:
                yield from self.columns(part.left or part.right)

    def rows(self, region: Sequence[int]) -> Rows:
        """Return boxes grouped by row: those whose middles lie within each other's height."""
        rows: Rows = []
        for index in sorted(region, key=lambda i: (self.bodies[i].middle, self.bodies[i].left)):
            row = rows[-1] if rows else []
            if row and any(self._same_row(index, other) for other in row):
                row.append(index)
            else:
                rows.append([index])
        return [sorted(row, key=lambda i: self.bodies[i].left) for row in rows]

    def _same_row(self, one: int, other: int) -> bool:
        a, b = self.bodies[one], self.bodies[other]
        level = b.top <= a.middle <= b.bottom or a.top <= b.middle <= a.bottom
        overlapping = min(a.right, b.right) - max(a.left, b.left)
        return level and overlapping < 0.5 * min(a.width, b.width)

    def _best_gutter(self, region: list[int]) -> _Gutter | None:
        step = max(self.line / 4, 1e-6)
        edges = {round(self.bodies[i].right / step): self.bodies[i].right for i in region}
        best: _Gutter | None = None
        for x in sorted(edges.values())[:-1]:
            gutter = self._gutter(region, x)
            if gutter is not None and (best is None or gutter.worth > best.worth):
                best = gutter
        return best

    def _gutter(self, region: list[int], x: float) -> _Gutter | None:
        """Return the gutter at x, or None if there is none."""
        slack = 0.25 * self.line
        left = [i for i in region if self.bodies[i].right <= x + slack]
        beyond = set(left)
        right = [i for i in region if i not in beyond and self.bodies[i].left >= x - slack]
        if len(left) < 2 or len(right) < 2:
            return None
        beyond.update(right)
        crossing = [i for i in region if i not in beyond]
        inside = self._beside(crossing, left) & self._beside(crossing, right)
        floats = [i for i in crossing if i in inside]
        across = [i for i in crossing if i not in inside]
        if len(floats) > _FLOATS * len(region) or self._beside(across, [*left, *right], level=True):
            return None  # it would cut through cells or columns
        parts = self._parts(left, right, across, floats)
        support = sum(self._support(part) for part in parts) - _FLOAT_COST * self.line * len(floats)
        return _Gutter((support, -len(across)), parts) if support > 0 else None

    def _beside(self, crossing: list[int], others: list[int], *, level: bool = False) -> set[int]:
        """Return which boxes have another at their left or right: in the same row if `level`, else at least nearly."""
        if not crossing:
            return set()
        mine, theirs = self._edges[crossing][:, None], self._edges[others][None]
        shared = np.minimum(mine[..., 3], theirs[..., 3]) - np.maximum(mine[..., 1], theirs[..., 1])
        apart = (theirs[..., 2] <= mine[..., 0]) | (theirs[..., 0] >= mine[..., 2])
        found = ((shared > (0.2 if level else -0.6) * self.line) & apart).any(axis=1)
        return {index for index, beside in zip(crossing, found, strict=True) if beside}

    def _parts(self, left: list[int], right: list[int], across: list[int], floats: list[int]) -> list[_Part]:
        """Return the region divided from top to bottom by the lines across it."""
        sides = [(i, "left") for i in left] + [(i, "right") for i in right] + [(i, "floats") for i in floats]
        tagged = sorted([*sides, *((i, "across") for i in across)], key=lambda pair: self.bodies[pair[0]].middle)
        parts: list[_Part] = []
        for index, side in tagged:
            if not parts or bool(parts[-1].across) != (side == "across"):
                parts.append(_Part([], [], [], []))
            chosen: list[int] = getattr(parts[-1], side)
            chosen.append(index)
        return parts

    def _support(self, part: _Part) -> float:
        """Return the height over which a part has columns; 0 if it has none, or if it is a table."""
        if part.across or len(part.left) < 2 or len(part.right) < 2:
            return 0.0
        left, right = (around(self.bodies[i] for i in side) for side in (part.left, part.right))
        if right.left - left.right < _GUTTER * self.line or self._is_table(part):
            return 0.0
        if len(self.rows(part.left)) < 2 or len(self.rows(part.right)) < 2:
            return 0.0
        return max(left.beside(right), 0.0)

    def _is_table(self, part: _Part) -> bool:
        """Return whether the two sides are cells of the same rows: level with each other, and short."""
        one, other = (self.rows(side) for side in (part.left, part.right))
        fewer, more = (one, other) if len(one) <= len(other) else (other, one)
        level = sum(any(self._level(row, beside) for beside in more) for row in fewer)
        if level < 0.7 * len(fewer):
            return False
        return any(self._short(side) for side in (one, other))

    def _level(self, row: Sequence[int], other: Sequence[int]) -> bool:
        a, b = (around(self.bodies[i] for i in each) for each in (row, other))
        return abs(a.middle - b.middle) < 0.35 * self.line

    def _short(self, rows: Rows) -> bool:
        return median(around(self.bodies[i] for i in row).width for row in rows) < _CELL * self.line


def _blocks(rows: Rows, frames: Sequence[Frame], line: float) -> list[Block]:
    """Divide the rows of a column where the gap or the height of lines changes."""
    groups: list[Rows] = []
    last: Frame | None = None
    for row in rows:
        here = around(frames[i] for i in row)
        if last is None or _starts_block(last, here):
            groups.append([])
        groups[-1].append(row)
        last = here
    return [Block(kind_of(group, frames, line), tuple(tuple(row) for row in group)) for group in groups]


def _starts_block(last: Frame, here: Frame) -> bool:
    low, high = sorted((last.height, here.height))
    return here.top - last.bottom > 0.8 * low or high > 1.5 * low


def kind_of(rows: Sequence[Sequence[int]], frames: Sequence[Frame], line: float) -> BlockKind:
    """Return what rows of boxes are, on a page whose lines are `line` pixels high."""
    if sum(len(row) > 1 for row in rows) >= max(2, len(rows) / 2):
        return BlockKind.TABLE
    height = median(frames[i].height for row in rows for i in row)
    return BlockKind.HEADING if height > 1.25 * line and len(rows) <= 3 else BlockKind.PARAGRAPH
