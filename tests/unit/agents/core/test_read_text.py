"""Reading order, merging and the auto policy, on hand-written spans and fake readers."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from PIL import Image

from agents.core.read_text import covered, in_reading_order, is_page, mean_confidence, merge, read_auto
from agents.core.text.geometry import Polygon, frame_of, rotated_back
from agents.core.text.page import page_of
from schemas.values import TextSpan

PICTURE = Image.new("RGB", (400, 300))


def box(left: float, top: float, width: float, height: float = 20) -> Polygon:
    right, bottom = left + width, top + height
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def span(text: str, place: Polygon, confidence: float = 0.9, engine: str = "tesseract") -> TextSpan:
    return TextSpan(text=text, confidence=confidence, polygon=place, engine=engine)


class Reader:
    """A reader that returns fixed spans and records its calls."""

    name = "fixed"

    def __init__(self, *spans: TextSpan) -> None:
        self.spans = list(spans)
        self.looked = 0
        self.boxes_read: list[Polygon] = []

    def read(self, image: Image.Image) -> list[TextSpan]:
        return self.spans

    def find(self, image: Image.Image) -> list[Polygon]:
        self.looked += 1
        return [one.polygon for one in self.spans]

    def read_at(self, image: Image.Image, boxes: Sequence[Polygon]) -> list[TextSpan]:
        self.boxes_read += boxes
        return [one for one in self.spans if one.polygon in boxes]


def texts(spans: Sequence[TextSpan]) -> list[str]:
    return [one.text for one in spans]


def test_lines_are_read_downwards_and_words_of_a_line_to_the_right() -> None:
    """Spans in any order are sorted by line, left to right, even when a line is not quite straight."""
    spans = [
        span("d", box(200, 53, 80)),
        span("b", box(100, 14, 50)),
        span("c", box(10, 50, 80)),
        span("a", box(10, 10, 50)),
    ]
    assert texts(in_reading_order(spans)) == ["a", "b", "c", "d"]


def test_columns_under_a_common_title_are_read_one_after_the_other() -> None:
    """A title over two columns comes first, then the whole left column, then the whole right one."""
    left = [span(f"l{i}", box(10, 60 + 25 * i, 150)) for i in range(4)]
    right = [span(f"r{i}", box(220, 62 + 25 * i, 150)) for i in range(4)]
    title = span("title", box(100, 10, 180))
    mixed = [piece for pair in zip(right, left, strict=True) for piece in pair]
    assert texts(in_reading_order([*mixed, title])) == ["title", "l0", "l1", "l2", "l3", "r0", "r1", "r2", "r3"]


def test_no_spans_have_no_confidence() -> None:
    """An image without text has no spans, confidence zero, and is not a page."""
    assert in_reading_order([]) == []
    assert mean_confidence([]) == 0
    assert not is_page([], confidence=0, words=1)


def test_confidence_is_weighted_by_length() -> None:
    """A long confident line counts more than a short doubtful one."""
    assert mean_confidence([span("a" * 9, box(0, 0, 90), 1.0), span("b", box(0, 30, 10), 0.0)]) == pytest.approx(0.9)


def test_merging_keeps_the_more_confident_reading_and_adds_the_rest() -> None:
    """Where both engines read the same text the more confident span is kept; spans of only one engine are added."""
    first = [span("Yuyvan", box(10, 10, 100), 0.4), span("only first", box(10, 100, 100), 0.8)]
    second = [
        span("Yuyuan", box(12, 9, 98), 0.9, "easyocr"),
        span("only second", box(200, 10, 100), 0.7, "easyocr"),
        span("unly f1rst", box(10, 101, 100), 0.3, "easyocr"),
    ]
    assert texts(merge(first, second)) == ["Yuyuan", "only second", "only first"]


def test_a_confident_word_does_not_replace_its_whole_line() -> None:
    """A short span that is more confident than the long line around it does not replace the line."""
    line = span("over the lazy dog", box(10, 10, 300), 0.8)
    assert texts(merge([line], [span("lazy", box(120, 10, 60), 0.99, "easyocr")])) == ["over the lazy dog"]


def test_merging_nothing_keeps_the_first_engines_own_order() -> None:
    """An engine with page layout keeps its order when the other adds nothing."""
    backwards = [span("b", box(10, 100, 50)), span("a", box(10, 10, 50))]
    assert texts(merge(backwards, [])) == ["b", "a"]


def test_auto_reads_a_well_read_page_once() -> None:
    """A page of confident lines is Tesseract's alone; EasyOCR does not run."""
    page = Reader(*(span("five words on one line", box(10, 30 * i, 300)) for i in range(5)))
    scene = Reader(span("else", box(10, 10, 300)))
    assert len(read_auto(PICTURE, page, scene)) == 5
    assert scene.looked == 0


def test_auto_reads_again_only_where_text_was_read_badly() -> None:
    """EasyOCR reads only the boxes without a confident line; lines where it finds no text are dropped."""
    page = Reader(
        span("good", box(10, 10, 100), 0.95), span("8@d", box(10, 100, 100), 0.4), span("::", box(300, 250, 9), 0.3)
    )
    scene = Reader(span("good!", box(10, 10, 100), 0.99, "easyocr"), span("bad", box(10, 100, 100), 0.8, "easyocr"))
    assert texts(read_auto(PICTURE, page, scene)) == ["good", "bad"]
    assert scene.boxes_read == [box(10, 100, 100)]


def test_auto_reads_nothing_where_there_is_no_text() -> None:
    """A photo without text is searched once and not read; Tesseract's noise in it is dropped."""
    scene = Reader()
    assert read_auto(PICTURE, Reader(span("~'", box(3, 3, 40), 0.35)), scene) == []
    assert (scene.looked, scene.boxes_read) == (1, [])


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_polygons_of_a_rotated_image_map_back(degrees: int) -> None:
    """A polygon in the rotated image maps back to its position in the original."""
    image = Image.new("L", (60, 40))
    image.paste(255, (50, 4, 56, 8))
    found = image.rotate(-degrees, expand=True).getbbox()
    assert found is not None
    left, top, right, bottom = found
    back = frame_of(rotated_back(box(left, top, right - left, bottom - top), degrees, 60, 40))
    assert (back.left, back.top, back.right, back.bottom) == (50, 4, 56, 8)


def test_scaling_moves_polygons_only() -> None:
    """Spans of a scaled-down image are scaled to the full size, their text unchanged."""
    page = page_of([span("a", box(1, 2, 3, 4))])
    assert page.scaled(2.0).spans == (span("a", box(2, 4, 6, 8)),)
    assert page.scaled(2.0).blocks[0].polygon == box(2, 4, 6, 8)
    assert page.scaled(1.0) is page


def test_cover_is_a_share_of_the_box() -> None:
    """A box half under a span is half covered; a box without area counts as covered."""
    assert covered(box(0, 0, 100), [span("a", box(0, 0, 50))]) == pytest.approx(0.5)
    assert covered(box(0, 0, 0), []) == 1.0
