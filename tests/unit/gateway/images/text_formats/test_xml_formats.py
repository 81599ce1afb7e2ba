"""hOCR and ALTO: well-formed whatever the text, with every word, box and confidence."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.images.text_formats.alto import alto
from gateway.images.text_formats.hocr import hocr
from schemas.stored.results import TextPage
from schemas.values import TextSpan, TextWord
from tests.unit.gateway.images.text_formats.pages import page, rectangle, span

XHTML = "{http://www.w3.org/1999/xhtml}"
ALTO = "{http://www.loc.gov/standards/alto/ns-v4#}"
NOT_HELD = re.compile("[\x00-\x08\x0b-\x1f\ud800-\udfff\ufffe\uffff]")


def hocr_words(document: bytes) -> list[str]:
    return [each.text or "" for each in fromstring(document).iter(f"{XHTML}span") if each.get("class") == "ocrx_word"]


def alto_words(document: bytes) -> list[str]:
    return [each.attrib["CONTENT"] for each in fromstring(document).iter(f"{ALTO}String")]


WRITERS = [
    pytest.param(hocr, hocr_words, id="hocr"),
    pytest.param(alto, alto_words, id="alto"),
]
Write = Callable[[Sequence[TextPage]], bytes]
Read = Callable[[bytes], list[str]]
texts = st.text(st.characters(codec=None, exclude_categories=()), min_size=1, max_size=12)


@pytest.mark.parametrize(("write", "read"), WRITERS)
@given(words=st.lists(texts, max_size=6), language=st.text(max_size=6), block=st.integers(0, 2))
def test_any_text_is_read_back_from_well_formed_xml(
    write: Write, read: Read, words: list[str], language: str, block: int
) -> None:
    """The words of any text are read back, without the characters that XML cannot hold."""
    read_words = [TextWord.model_construct(text=word, confidence=0.5, polygon=rectangle(1, 1, 9, 9)) for word in words]
    line = TextSpan.model_construct(
        text=" ".join(words),
        confidence=0.5,
        polygon=rectangle(1, 1, 9, 9),
        engine="x",
        language=language,
        words=tuple(read_words),
        block=block,
    )
    one = TextPage.model_construct(width=10, height=10, content="", spans=(line,))
    expected = [left for word in words if (left := NOT_HELD.sub("", word)).strip()]
    if words:  # a line without words is estimated from its text, which has none either
        assert read(write([one, one])) == expected * 2


def test_hocr_has_pages_areas_paragraphs_lines_and_words() -> None:
    """Boxes are whole pixels of the page and confidence is a percentage, in the elements of hOCR."""
    root = fromstring(hocr([page(span(["Hello", "<b>&"], 40), span(["Welt"], 90, block=1, language="de"))]))
    found = {each.get("class"): each for each in reversed(list(root.iter())) if each.get("class")}
    assert found["ocr_page"].get("title") == "bbox 0 0 800 600; ppageno 0"
    assert found["ocr_carea"].get("title") == found["ocr_par"].get("title") == "bbox 50 40 170 60"
    assert found["ocr_line"].get("title") == "bbox 50 40 170 60"
    assert found["ocrx_word"].get("title") == "bbox 50 40 110 60; x_wconf 90"
    lines = [each for each in root.iter() if each.get("class") == "ocr_line"]
    assert ["".join(line.itertext()).strip() for line in lines] == ["Hello <b>&", "Welt"]
    assert [line.get("lang") for line in lines] == ["en", "de"]
    names = [each.attrib["id"] for each in root.iter() if "id" in each.attrib]
    assert len(names) == len(set(names)) == 1 + 2 + 2 + 2 + 3
    assert len(list(root.iter(f"{XHTML}p"))) == 2


def test_alto_has_the_structure_of_its_schema() -> None:
    """Elements are in the order the schema asks, with its required attributes, and lengths in pixels."""
    root = fromstring(alto([page(span(["Hello", "wörld"], 40), span(["中", "文"], 90, by="", block=1)), page()]))
    assert [child.tag for child in root] == [f"{ALTO}Description", f"{ALTO}Layout"]
    assert root.findtext(f"{ALTO}Description/{ALTO}MeasurementUnit") == "pixel"
    first, second = root.findall(f"{ALTO}Layout/{ALTO}Page")
    assert (first.get("PHYSICAL_IMG_NR"), second.get("PHYSICAL_IMG_NR")) == ("1", "2")
    assert place(first.find(f"{ALTO}PrintSpace")) == {"HPOS": 0, "VPOS": 0, "WIDTH": 800, "HEIGHT": 600}
    lines = list(first.iter(f"{ALTO}TextLine"))
    assert [[child.tag.removeprefix(ALTO) for child in line] for line in lines] == [
        ["String", "SP", "String"],
        ["String", "String"],  # no space between characters of Han
    ]
    word = next(first.iter(f"{ALTO}String"))
    assert place(word) == {"HPOS": 50, "VPOS": 40, "WIDTH": 60, "HEIGHT": 20}
    assert (word.get("CONTENT"), word.get("WC")) == ("Hello", "0.90")
    names = [each.attrib["ID"] for each in root.iter() if "ID" in each.attrib]
    assert len(names) == len(set(names)) == 1 + 2 + 2 + 2 + 4


@pytest.mark.parametrize(("write", "read"), WRITERS)
def test_a_line_without_words_is_divided_at_its_spaces(write: Write, read: Read) -> None:
    """A line that an engine read whole has a box for each run of letters, by its share of the line."""
    line = TextSpan(text="ab cd", confidence=0.5, polygon=rectangle(0, 0, 100, 20), engine="easyocr")
    document = write([page(line)])
    assert read(document) == ["ab", "cd"]
    assert b"bbox 60 0 100 20" in document or b'HPOS="60" VPOS="0" WIDTH="40"' in document


@pytest.mark.parametrize(("write", "read"), WRITERS)
def test_boxes_stay_within_the_page(write: Write, read: Read) -> None:
    """A polygon that leaves the page is cut at its edges."""
    line = TextSpan(text="a", confidence=1, polygon=rectangle(-5, -7, 900, 20), engine="easyocr")
    document = write([page(line)])
    assert read(document) == ["a"]
    assert b"-5" not in document and b"900" not in document.replace(b"T/REC", b"")


def place(element: Element | None) -> dict[str, int]:
    """Return position and size of an element."""
    assert element is not None
    return {name: int(element.attrib[name]) for name in ("HPOS", "VPOS", "WIDTH", "HEIGHT")}
