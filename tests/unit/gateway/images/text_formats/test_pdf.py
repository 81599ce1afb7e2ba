"""PDF: PDFium finds every word of every script where it is in the image, and sees only the image."""

from __future__ import annotations

import io
import time
from datetime import UTC, datetime

import pypdfium2
import pytest
from PIL import Image

from gateway.images.text_formats.pdf import pdf
from schemas.stored.results import TextPage
from schemas.values import TextSpan
from tests.unit.gateway.images.text_formats.pages import Polygon, page, rectangle, span

MADE = datetime(2026, 3, 1, tzinfo=UTC)
SCALE = 842 / 800  # points a pixel, of a page 800 pixels wide


def written(*pages: TextPage, images: dict[int, bytes] | None = None) -> pypdfium2.PdfDocument:
    return pypdfium2.PdfDocument(pdf(pages, (images or {}).get, made_at=MADE))


def text_of(document: pypdfium2.PdfDocument, number: int = 0) -> list[str]:
    return str(document[number].get_textpage().get_text_range()).splitlines()


def image(kind: str, mode: str = "RGB") -> bytes:
    """Return a red image of 80 by 60 pixels."""
    encoded = io.BytesIO()
    Image.new(mode, (80, 60), "red").save(encoded, kind)
    return encoded.getvalue()


@pytest.mark.parametrize(
    ("words", "by", "right_to_left"),
    [
        (["Hello", "wörld", "ﬁne", "(a)"], " ", False),
        (["Привет,", "мир"], " ", False),
        (["Γειά", "σου"], " ", False),
        (["你", "好", "，", "世", "界", "𠮷"], "", False),
        (["東京", "タワー"], " ", False),
        (["한국어", "문장"], " ", False),
        (["हिन्दी", "भाषा"], " ", False),
        (["مرحبا", "بالعالم", "2026"], " ", True),
        (["שלום", "(עולם)"], " ", True),
    ],
)
def test_text_of_every_script_is_extracted(words: list[str], by: str, right_to_left: bool) -> None:
    """The extracted line is the line that was read, in logical order."""
    found = text_of(written(page(span(words, 100, by=by, right_to_left=right_to_left))))
    assert found == [by.join(words).replace("ﬁ", "fi")]  # PDFium opens ligatures


def test_lines_without_words_are_extracted() -> None:
    """A line that an engine read whole is text, too."""
    line = TextSpan(text="read as one", confidence=0.5, polygon=rectangle(10, 10, 200, 30), engine="easyocr")
    assert text_of(written(page(line))) == ["read as one"]


@pytest.mark.parametrize("degrees", [0, 8, 90, 180, 270])
def test_words_are_where_they_are_in_the_image(degrees: float) -> None:
    """The box of the found word is its box in the image, at any angle, to three points."""
    line = span(["Hello", "world"], 300, degrees=degrees)
    textpage = written(page(line))[0].get_textpage()
    start, count = textpage.search("world").get_next()
    boxes = [textpage.get_charbox(at) for at in range(start, start + count)]
    height = 600 * SCALE
    xs, ys = zip(*line.words[1].polygon, strict=True)
    expected = (min(xs) * SCALE, height - max(ys) * SCALE, max(xs) * SCALE, height - min(ys) * SCALE)
    found = (min(b[0] for b in boxes), min(b[1] for b in boxes), max(b[2] for b in boxes), max(b[3] for b in boxes))
    assert found == pytest.approx(expected, abs=3)


@pytest.mark.parametrize(("rotation", "size"), [(90, (842, 631.5)), (180, (631.5, 842)), (270, (842, 631.5))])
def test_a_page_is_turned_until_its_text_is_upright(rotation: int, size: tuple[float, float]) -> None:
    """A page photographed upside down or on its side is read in its order, and shows its image upright."""
    # Two lines of an upright page of 600 by 800 pixels (or 800 by 600), as the turned camera saw them.
    width, height = (600, 800) if rotation == 180 else (800, 600)
    lines = [span(["first", "line"], 60, row=0), span(["second", "line"], 120, row=1)]
    seen = [line.model_copy(update={"words": tuple(
        word.model_copy(update={"polygon": seen_turned(word.polygon, rotation, width, height)}) for word in line.words
    )}) for line in lines]  # fmt: skip
    one = page(*seen, width=600, height=800).model_copy(update={"rotation": rotation})
    photo = Image.new("RGB", (60, 80), "red")
    photo.paste("blue", {90: (0, 40, 60, 80), 180: (0, 40, 60, 80), 270: (0, 0, 60, 40)}[rotation])
    encoded = io.BytesIO()
    photo.save(encoded, "PNG")
    document = written(one, images={1: encoded.getvalue()})
    assert text_of(document) == ["first line", "second line"]
    assert document[0].get_size() == pytest.approx(size, abs=0.1)
    shown = document[0].render(scale=0.1).to_pil().convert("RGB")
    corner = shown.getpixel((3, 3))
    assert isinstance(corner, tuple)
    assert corner[2] > 200 and corner[0] < 60, "what is blue is at the top left of the upright page"


def seen_turned(polygon: Polygon, rotation: int, width: int, height: int) -> Polygon:
    """Return a polygon of an upright page in the image that must be rotated clockwise to make it upright."""
    back = {
        90: lambda x, y: (y, width - x),
        180: lambda x, y: (width - x, height - y),
        270: lambda x, y: (height - y, x),
    }
    return tuple(back[rotation](x, y) for x, y in polygon)


def test_only_the_image_is_visible() -> None:
    """A rendered page is the image, without a trace of the text."""
    document = written(page(span(["Hello"], 100)), images={1: image("JPEG")})
    assert document[0].get_size() == pytest.approx((842, 842 * 6 / 8), abs=0.1)
    extremes = document[0].render(scale=0.5).to_pil().convert("RGB").getextrema()
    assert [low > 200 or high < 60 for low, high in extremes] == [True] * 3
    assert extremes[0][0] > 200
    assert text_of(document) == ["Hello"]


def test_a_jpeg_is_stored_as_it_is() -> None:
    """The bytes of a JPEG are in the PDF, unchanged."""
    jpeg = image("JPEG")
    assert jpeg in pdf([page()], {1: jpeg}.get, made_at=MADE)


@pytest.mark.parametrize(("kind", "mode"), [("WEBP", "RGB"), ("WEBP", "RGBA"), ("PNG", "L"), ("PNG", "LA")])
def test_other_images_become_jpeg(kind: str, mode: str) -> None:
    """Images of other formats are drawn, too."""
    grey = io.BytesIO()
    Image.new(mode, (80, 60), 90 if mode == "L" else (90, 255) if mode == "LA" else "red").save(grey, kind)
    shown = written(page(), images={1: grey.getvalue()})[0].render(scale=0.1).to_pil().convert("RGB")
    assert shown.getpixel((40, 30)) != (255, 255, 255)


def test_every_page_has_its_own_image_and_text() -> None:
    """Pages keep their order; one without an image has the text alone."""
    pages = [
        page(span(["first"], 50)),
        page(span(["second"], 50), width=300, height=900).model_copy(update={"number": 2}),
    ]
    document = written(*pages, images={1: image("WEBP")})
    assert [text_of(document, number) for number in (0, 1)] == [["first"], ["second"]]
    assert document[1].get_height() == pytest.approx(842, abs=0.1)
    assert document[1].render(scale=0.1).to_pil().convert("RGB").getextrema() == ((255, 255),) * 3


def test_equal_arguments_give_equal_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The document names no time of its own, so that its entity tag stays."""
    pages = [page(span(["Hello"], 100))]
    first = pdf(pages, {1: image("WEBP")}.get, made_at=MADE)
    later = time.time() + 1e6
    monkeypatch.setattr(time, "time", lambda: later)
    assert pdf(pages, {1: image("WEBP")}.get, made_at=MADE) == first


@pytest.mark.parametrize("size", [(1, 1), (1, 30_000), (30_000, 2)])
def test_extreme_sizes_are_pages(size: tuple[int, int]) -> None:
    """A page of any proportions can be written and read."""
    document = written(page(span(["a"], 0), width=size[0], height=size[1]))
    assert min(document[0].get_size()) >= 2.9
