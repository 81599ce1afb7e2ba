"""Reading order: drawn boxes of columns, tables, headlines and captions."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from agents.core.text.geometry import Frame
from agents.core.text.layout import Block, BlockKind, arrange

LINE = 20.0


def order(blocks: list[Block]) -> list[int]:
    return [index for block in blocks for row in block.rows for index in row]


def line(left: float, top: float, width: float, height: float = LINE) -> Frame:
    return Frame(left, top, left + width, top + height)


@st.composite
def newspapers(draw: st.DrawFn) -> list[Frame]:
    """Pages of two to four columns of lines under an optional headline, in reading order."""
    count = draw(st.integers(2, 4))
    width = draw(st.integers(160, 400))
    gutter = draw(st.integers(24, 70))
    pitch = draw(st.integers(24, 34))
    frames: list[Frame] = []
    top = 0.0
    if draw(st.booleans()):
        frames.append(line(draw(st.integers(0, 40)), 0, width * 1.6 + gutter, 40))
        top = 70.0
    offset = draw(st.integers(0, 15))
    for column in range(count):
        left = column * (width + gutter)
        lines = draw(st.integers(4, 12))
        for index in range(lines):
            last = index == lines - 1
            share = draw(st.floats(0.3, 1)) if last else draw(st.floats(0.82, 1))
            frames.append(line(left, top + offset * column + index * pitch, width * share))
    return frames


@settings(max_examples=150, deadline=None)
@given(newspapers(), st.randoms(use_true_random=False))
def test_columns_are_read_one_after_the_other(frames: list[Frame], random: Random) -> None:
    """Whatever the columns' widths, gutters and baselines, the order they were set in is recovered."""
    shuffled = list(range(len(frames)))
    random.shuffle(shuffled)
    found = [shuffled[index] for index in order(arrange([frames[index] for index in shuffled]))]
    assert found == list(range(len(frames)))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(30, 180), st.integers(20, 90)), min_size=1, max_size=15),
    st.integers(24, 40),
    st.integers(300, 600),
)
def test_the_cells_of_a_table_are_read_row_by_row(rows: list[tuple[int, int]], pitch: int, right: int) -> None:
    """Labels at the left and amounts flush right are rows, whatever their widths."""
    frames: list[Frame] = []
    for index, (label, amount) in enumerate(rows):
        frames += [line(10, index * pitch, label), line(right - amount, index * pitch, amount)]
    blocks = arrange(frames)
    assert order(blocks) == list(range(len(frames)))
    assert [row for block in blocks for row in block.rows] == [(2 * i, 2 * i + 1) for i in range(len(rows))]
    if len(rows) > 1 and pitch < 36:
        assert {block.kind for block in blocks} == {BlockKind.TABLE}


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.builds(line, st.integers(0, 900), st.integers(0, 900), st.integers(1, 400), st.integers(1, 60)), max_size=40
    )
)
def test_every_box_is_read_once(frames: list[Frame]) -> None:
    """Of any boxes, overlapping or not, each is in one row of one block."""
    assert sorted(order(arrange(frames))) == list(range(len(frames)))


def test_a_caption_between_two_columns_is_read_after_them() -> None:
    """A box across the gutter with text at both sides does not cut the columns."""
    left = [line(0, 24 * i, 300 if i not in (4, 5) else 220) for i in range(10)]
    right = [line(340 if i not in (4, 5) else 420, 24 * i, 300 if i not in (4, 5) else 220) for i in range(10)]
    caption = [line(250, 24 * i, 140) for i in (4, 5)]
    assert order(arrange([*left, *right, *caption])) == list(range(22))


def test_a_receipt_with_rows_without_amount_is_read_row_by_row() -> None:
    """Rows that are longer than the others, and rows of one cell, stay in their place."""
    frames = [line(10, 0, 120), line(10, 34, 110), line(10, 68, 80), line(400, 68, 50), line(10, 102, 115),
              line(405, 102, 45), line(10, 136, 130), line(400, 136, 50)]  # fmt: skip
    assert order(arrange(frames)) == list(range(8))


def test_a_large_line_is_a_heading() -> None:
    """A line much higher than the others is a block of its own, a heading; the lines below are one paragraph."""
    blocks = arrange([line(0, 0, 300, 36), *(line(0, 60 + 26 * i, 400) for i in range(4))])
    assert [(block.kind, len(block.rows)) for block in blocks] == [(BlockKind.HEADING, 1), (BlockKind.PARAGRAPH, 4)]


def test_columns_of_scripts_from_the_right_begin_at_the_right() -> None:
    """The right column comes first, and in a row the right cell."""
    left = [line(0, 26 * i, 300) for i in range(4)]
    right = [line(360, 26 * i, 300) for i in range(4)]
    assert order(arrange([*left, *right], right_to_left=True)) == [4, 5, 6, 7, 0, 1, 2, 3]
    assert order(arrange([line(0, 0, 50), line(300, 0, 50)], right_to_left=True)) == [1, 0]


def test_no_boxes_are_no_blocks() -> None:
    """An empty page has no blocks."""
    assert arrange([]) == []
