from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from agents.core.decode import Limits, Refusal, decode
from agents.core.sanitize import sanitize, sanitize_page
from schemas.values import ErrorCode
from tests.support import documents

ENCRYPTED = b"/Encrypt << /Filter /%s /V 1 /R 2 /O <%s> /U <%s> /P -4 >> /ID [<00> <00>]"


def _refused(data: bytes, limits: Limits | None = None) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode(data, limits or Limits())
    return caught.value


def _dark(image: Image.Image) -> float:
    return float((np.asarray(image.convert("L")) < 128).mean())


def test_a_page_is_drawn_at_the_resolution_on_white() -> None:
    """An A4 page at 200 dpi has 1652 x 2338 pixels, in grey, with its text; every page counts."""
    data = documents.written_pdf(["Invoice", "Total"])
    decoded = decode(data, Limits(pdf_dpi=200))
    assert decoded.image.size == (int(595 / 72 * 200), int(842 / 72 * 200))
    assert (decoded.format, decoded.frames, decoded.pages, decoded.image.mode) == ("pdf", 2, 2, "L")
    assert 0.0005 < _dark(decoded.image) < 0.05
    assert decode(data, Limits(pdf_dpi=72)).image.size == (595, 842)


def test_each_page_is_drawn_by_its_number() -> None:
    """The second page is another image than the first; there is no third."""
    data = documents.scanned_pdf([Image.new("RGB", (80, 60), "red"), Image.new("RGB", (50, 70), "blue")], dpi=72)
    first, second = (decode(data, Limits(pdf_dpi=72), number).image for number in (1, 2))
    assert (first.size, second.size) == ((80, 60), (50, 70))
    assert np.asarray(first)[30, 40].argmax() == 0
    assert np.asarray(second)[30, 40].argmax() == 2
    with pytest.raises(Refusal):
        decode(data, Limits(), 3)


def test_a_large_page_is_drawn_within_the_limits() -> None:
    """A page of 200 inches is scaled to the longest side or the pixels that are allowed."""
    poster = documents.blank_pdf(box=b"0 0 14400 7200")
    assert decode(poster, Limits(max_side=2000)).image.size == (2000, 1000)
    width, height = decode(poster, Limits(max_side=2000, max_pixels=500_000)).image.size
    assert 490_000 < width * height <= 500_000


@pytest.mark.parametrize("box", [b"0 0 14401 10", b"0 0 1000000000 1000000000"])
def test_a_page_larger_than_pdf_allows_is_refused(box: bytes) -> None:
    """Beyond 14 400 points a side no resolution is sensible: refused before anything is allocated."""
    assert _refused(documents.blank_pdf(box=box)).code == ErrorCode.DIMENSIONS_TOO_LARGE


@pytest.mark.parametrize("part", [0.2, 0.5, 0.9, 0.999])
def test_a_truncated_pdf_is_refused(part: float) -> None:
    """A file without its end is truncated, though PDFium would draw what is left."""
    data = documents.written_pdf(["one", "two", "three"])
    assert _refused(data[: int(len(data) * part)]).code == ErrorCode.TRUNCATED_IMAGE


def test_padding_behind_the_end_is_accepted() -> None:
    """Zeros and line ends behind the marker, as some scanners write them, do no harm."""
    assert decode(documents.written_pdf(["one"]) + bytes(5000) + b"\r\n" * 900, Limits()).frames == 1


@pytest.mark.parametrize(
    "trailer",
    [ENCRYPTED % (b"Standard", b"ab" * 32, b"cd" * 32), ENCRYPTED % (b"Unknown", b"ab" * 32, b"cd" * 32)],
    ids=["password", "unknown"],
)
def test_an_encrypted_pdf_is_refused(trailer: bytes) -> None:
    """A file that needs a password, or a method that is not known, is refused with what to do."""
    refusal = _refused(documents.blank_pdf(trailer=trailer))
    assert (refusal.code, refusal.message) == (
        ErrorCode.CORRUPT_IMAGE,
        "The PDF is encrypted. Send it without a password.",
    )


DAMAGED = {
    "nothing": b"%PDF-1.7\n%%EOF\n",
    "noise": b"%PDF-1.7\n" + bytes(range(256)) * 40 + b"%%EOF",
    "an image": b"%PDF-1.7\n\xff\xd8\xff\xe0" + bytes(500) + b"%%EOF",
    "a page tree in a circle": documents.pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [2 0 R] /Count 1 >>"
    ),
    "a page that does not exist": documents.pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [9 0 R] /Count 1 >>"
    ),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_damaged_pdf_is_refused(name: str) -> None:
    """A file without a readable page is damaged."""
    assert _refused(DAMAGED[name]).code == ErrorCode.CORRUPT_IMAGE


def test_a_pdf_without_pages_is_refused() -> None:
    """An empty page tree is refused as damaged, also after a file that needed a password."""
    empty = documents.pdf(b"<< /Type /Catalog /Pages 2 0 R >>", b"<< /Type /Pages /Kids [] /Count 0 >>")
    first = _refused(empty)
    _refused(documents.blank_pdf(trailer=ENCRYPTED % (b"Standard", b"ab" * 32, b"cd" * 32)))
    assert _refused(empty).message == first.message == "The PDF file is damaged and cannot be read."
    assert first.code == ErrorCode.CORRUPT_IMAGE


def test_a_table_that_names_itself_as_the_previous_one_ends() -> None:
    """A cross-reference table in a circle is read once: the file is drawn or refused."""
    data = documents.blank_pdf(trailer=b"/Prev %08d")
    start = data.rindex(b"xref\n0 ", 0, data.rindex(b"startxref"))
    looping = data.replace(b"%08d", b"%08d" % start)
    try:
        assert decode(looping, Limits()).frames == 1
    except Refusal as refusal:
        assert refusal.code == ErrorCode.CORRUPT_IMAGE


def test_the_number_of_pages_is_limited_whatever_the_file_says() -> None:
    """More pages than `max_frames`, true or false, are refused; a false number below it is not believed."""
    pages = [b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 9 9] >>"] * 40
    kids = b" ".join(b"%d 0 R" % number for number in range(3, 43))
    tree = b"<< /Type /Pages /Kids [%s] /Count %d >>"
    many = documents.pdf(b"<< /Type /Catalog /Pages 2 0 R >>", tree % (kids, 40), *pages)
    assert decode(many, Limits(max_frames=40)).frames == 40
    assert _refused(many, Limits(max_frames=39)).code == ErrorCode.TOO_MANY_PIXELS
    lying = documents.pdf(b"<< /Type /Catalog /Pages 2 0 R >>", tree % (kids, 900_000), *pages)
    assert _refused(lying).code == ErrorCode.TOO_MANY_PIXELS


def test_a_drawing_that_contains_itself_ends() -> None:
    """A form that draws itself is drawn once."""
    entries = b"/Type /XObject /Subtype /Form /BBox [0 0 200 200] /Resources << /XObject << /A 4 0 R >> >>"
    recursive = documents.pdf(
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 5 0 R"
        b" /Resources << /XObject << /A 4 0 R >> >> >>",
        documents.stream(b"0 0 100 100 re f /A Do", entries),
        documents.stream(b"/A Do"),
    )
    assert _dark(decode(recursive, Limits()).image) == pytest.approx(0.25, abs=0.02)


def test_scripts_actions_and_attachments_stay_behind() -> None:
    """A script that runs on opening, an attachment and a launch action do nothing and leave nothing in the master."""
    catalogue = (
        b"/OpenAction << /S /JavaScript /JS (app.alert\\('evil'\\);this.getField\\('a'\\)) >>"
        b" /AA << /WC << /S /Launch /F (evil.sh) >> >>"
        b" /Names << /EmbeddedFiles << /Names [(evil.exe) << /Type /Filespec /F (evil.exe) >>] >> >>"
    )
    made = sanitize(documents.blank_pdf(catalogue=catalogue), Limits())
    plain = sanitize(documents.blank_pdf(), Limits())
    assert made.master == plain.master
    assert b"evil" not in made.master


def test_a_filled_in_field_is_drawn_as_the_file_shows_it() -> None:
    """The appearance of a form's field is drawn; the form itself is not opened."""
    field = (
        b"<< /Type /Annot /Subtype /Widget /FT /Tx /T (a) /V (x) /Rect [50 50 150 150] /F 4"
        b" /AP << /N 4 0 R >> /AA << /K << /S /JavaScript /JS (event.value='y') >> >> >>"
    )
    form = documents.pdf(
        b"<< /Type /Catalog /Pages 2 0 R /AcroForm << /Fields [5 0 R] >> >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Annots [5 0 R] >>",
        documents.stream(b"0 0 100 100 re f", b"/Type /XObject /Subtype /Form /BBox [0 0 100 100]"),
        field,
    )
    assert _dark(decode(form, Limits()).image) == pytest.approx(0.25, abs=0.02)


def test_a_page_is_stored_in_the_smaller_encoding() -> None:
    """Lines of text become PNG, a photo JPEG; equal files give equal bytes."""
    text = documents.written_pdf(["Invoice 2026-117"])
    photo = documents.scanned_pdf([Image.effect_noise((600, 600), 80).convert("RGB")])
    assert sanitize(text, Limits()).extension == "png"
    made = sanitize(photo, Limits())
    assert (made.extension, made.content_type) == ("jpg", "image/jpeg")
    assert sanitize(photo, Limits()).master == made.master


@pytest.mark.parametrize("kind", ["tiff", "pdf"])
def test_a_page_has_no_metadata_and_is_as_the_first_would_be(kind: str) -> None:
    """The second page is as safe as a master: the same pixels give the same bytes as page 1 and page 2."""
    pages = [Image.new("RGB", (64, 48), "red"), Image.linear_gradient("L").convert("RGB").resize((90, 40))]
    write = documents.WRITERS[kind]
    second = sanitize_page(write(pages), Limits(), 2)
    alone = sanitize(write(pages[1:]), Limits())
    assert (second.body, second.extension) == (alone.master, alone.extension)
    image = Image.open(io.BytesIO(second.body))
    assert image.size == (second.width, second.height) == (alone.width, alone.height)
    assert not image.getexif()
