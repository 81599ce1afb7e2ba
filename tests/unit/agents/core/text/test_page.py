"""Pages: rows and blocks of spans, rotation and tilt."""

from __future__ import annotations

import math

import pytest

from agents.core.text.geometry import Frame, Polygon, rotated_back
from agents.core.text.page import content_of, laid_out, levelled, page_of, tilt_of
from schemas.values import TextSpan


def span(text: str, left: float, top: float, width: float, height: float = 20) -> TextSpan:
    polygon = Frame(left, top, left + width, top + height).corners
    return TextSpan(text=text, confidence=0.9, polygon=polygon, engine="ppocr")


ROWS = [
    span("Rye bread", 10, 10, 120),
    span("3.20", 300, 11, 40),
    span("Coffee", 10, 40, 80),
    span("2.10", 300, 41, 40),
]
PAGE = [*ROWS, span("Thank you for your visit", 10, 100, 300), span("and come again", 10, 126, 200)]


def test_cells_of_a_row_are_one_line_of_the_content() -> None:
    """Rows are lines of the text, cells are separated by a space, and blocks say what they are."""
    page = laid_out(PAGE[::-1])
    assert page.content == "Rye bread 3.20\nCoffee 2.10\nThank you for your visit\nand come again"
    assert [(each.block, each.row) for each in page.spans] == [(0, 0), (0, 0), (0, 1), (0, 1), (1, 2), (1, 3)]
    assert [block.kind for block in page.blocks] == ["table", "paragraph"]
    assert page.blocks[0].polygon == Frame(10, 10, 340, 61).corners
    assert (page.rotation, page.tilt) == (0, 0.0)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("tilt", [-12.0, 0.0, 7.0])
def test_a_rotated_and_tilted_page_reads_like_the_upright_one(rotation: int, tilt: float) -> None:
    """Rotation is given, tilt is found, and the order is that of the upright page."""

    def moved(polygon: Polygon) -> Polygon:
        return rotated_back(levelled(polygon, -tilt), rotation, 400, 200)

    spans = [each.model_copy(update={"polygon": moved(each.polygon)}) for each in PAGE]
    page = laid_out(spans[::-1], rotation=rotation)
    assert page.content == laid_out(PAGE).content
    assert page.tilt == pytest.approx(tilt, abs=0.1)
    a, b = page.blocks[1].polygon[:2]
    assert math.dist(a, b) == pytest.approx(300, abs=1)


def test_an_engines_own_order_is_kept() -> None:
    """Spans with numbers of blocks and rows keep their order; the numbers are made consecutive."""
    spans = [PAGE[4].model_copy(update={"block": 3, "row": 7}), PAGE[0].model_copy(update={"block": 5, "row": 2})]
    page = page_of(spans)
    assert page.content == "Thank you for your visit\nRye bread"
    assert [(each.block, each.row) for each in page.spans] == [(0, 0), (1, 1)]


def test_no_spans_are_an_empty_page() -> None:
    """Without text there are no blocks, no tilt, and the content is empty."""
    page = laid_out([], rotation=90, notes=("note",))
    assert (page.content, page.blocks, page.tilt, page.rotation, page.notes) == ("", (), 0.0, 90, ("note",))
    assert content_of([]) == ""
    assert tilt_of([span("I", 0, 0, 5).polygon], 0) == 0.0


def test_scripts_from_the_right_begin_at_the_right() -> None:
    """Of an Arabic row, the right cell is read first."""
    page = laid_out([span("12.50", 10, 10, 50), span("المكتبة مغلقة", 300, 10, 120)])
    assert page.content == "المكتبة مغلقة 12.50"
