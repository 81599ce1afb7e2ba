"""PDF with searchable text: the image of each page, and over it the words, invisible, in their boxes.

The text needs no typeface: a font is made whose glyphs are equal rectangles, one for each character of the text, so
that any script can be searched and copied.
"""

from __future__ import annotations

import io
import math
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path

from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from fpdf import FPDF
from fpdf.bidi import BidiParagraph
from fpdf.enums import TextMode
from PIL import Image

from gateway.images.text_formats.layout import Line, Word, blocks_of, corners_of
from schemas.stored.results import TextPage

_LONGEST = 842.0  # points of a page's longest side, as of A4
_LEAST = 3.0  # points of a page's side (ISO 32000-1, annex C.2)
_EM, _ASCENT, _WIDTH = 1000, 800, 500  # of the font; the descent is the rest of an em
_FAMILY = "Invisible"
_UNIX_EPOCH = 2_082_844_800  # seconds since 1904, as fonts count: equal text gives an equal font
_JPEG_QUALITY = 85
_open = Image.open  # on import ultralytics replaces Image.open by one with other errors
_RIGHT_TO_LEFT = frozenset({"R", "AL"})
_MIRRORED = str.maketrans("()[]{}<>«»", ")(][}{><»«")

ImageOfPage = Callable[[int], bytes | None]
"""Returns the encoded image of a page, by its number in the document, from 1; None for a page without."""


def pdf(pages: Sequence[TextPage], image_of: ImageOfPage, *, made_at: datetime) -> bytes:
    """Return pages as PDF 1.x; equal arguments give equal bytes.

    Pages are rotated until their text is upright; the longest side has 842 points, as A4 has. Images other than JPEG
    are stored as JPEG, on white; one that cannot be decoded is left out.
    """
    document = FPDF(unit="pt")
    document.set_creation_date(made_at)
    document.set_auto_page_break(False)
    laid_out = [[line for block in blocks_of(page) for line in block] for page in pages]
    with tempfile.TemporaryDirectory() as folder:  # fpdf2 reads fonts from files, until the output
        path = Path(folder) / "invisible.ttf"
        path.write_bytes(_font(letter for lines in laid_out for line in lines for w in line.words for letter in w.text))
        document.add_font(_FAMILY, fname=path)
        for page, lines in zip(pages, laid_out, strict=True):
            scale = _LONGEST / max(page.width, page.height)
            width, height = max(page.width * scale, _LEAST), max(page.height * scale, _LEAST)
            document.add_page(format=(height, width) if page.rotation in (90, 270) else (width, height))
            with document.rotation(-page.rotation, *_pivot(page.rotation, width, height)):
                if (image := _as_jpeg(image_of(page.number))) is not None:
                    document.image(io.BytesIO(image), 0, 0, width, height)
                document.text_mode = TextMode.INVISIBLE
                for line in lines:
                    _write(document, line, scale)
        return bytes(document.output())


def _pivot(rotation: int, width: float, height: float) -> tuple[float, float]:
    """Return the point about which a page of that size is rotated clockwise so that it fits the upright page."""
    return {90: (height / 2, height / 2), 270: (width / 2, width / 2)}.get(rotation, (width / 2, height / 2))


def _write(document: FPDF, line: Line, scale: float) -> None:
    """Write the words of a line, each stretched to the width of its box."""
    for word in line.words:
        (left, top), (right, right_top), _, (bottom_left, bottom) = corners_of(word.polygon)
        length = math.hypot(right - left, right_top - top) * scale
        size = round(math.hypot(bottom_left - left, bottom - top) * scale, 2)
        if not (length and size):
            continue
        document.set_font(_FAMILY, size=size)
        document.set_stretching(100 * length / (len(word.text) * size * _WIDTH / _EM))
        x, y = left * scale, top * scale
        with document.rotation(-math.degrees(math.atan2(right_top - top, right - left)), x, y):
            document.text(x, y + size * _ASCENT / _EM, _visual(word))


def _visual(word: Word) -> str:
    """Return the letters of a word from left to right, which is how readers of PDF expect them."""
    paragraph = BidiParagraph(word.text)
    if not any(letter.bidi_class in _RIGHT_TO_LEFT for letter in paragraph.characters):
        return f"{word.text} " if word.spaced else word.text
    letters = paragraph.get_reordered_characters()
    return "".join(
        letter.character.translate(_MIRRORED) if letter.embedding_level % 2 else letter.character for letter in letters
    )


def _as_jpeg(data: bytes | None) -> bytes | None:
    if data is None:
        return None
    try:
        with _open(io.BytesIO(data)) as image:
            if image.format == "JPEG":
                return data
            rgba = image.convert("RGBA")
    except OSError:
        return None
    flat = Image.new("RGB", rgba.size, "white")
    flat.paste(rgba, mask=rgba.getchannel("A"))
    encoded = io.BytesIO()
    flat.save(encoded, "JPEG", quality=_JPEG_QUALITY)
    return encoded.getvalue()


def _font(letters: Iterable[str]) -> bytes:
    """Return a TrueType font with a rectangle for each letter. Readers drop text whose glyphs have no area."""
    names = {ord(letter): f"u{ord(letter):04X}" for letter in sorted({" ", *letters})}
    pen = TTGlyphPen(None)
    corners = [(0, _ASCENT - _EM), (0, _ASCENT), (_WIDTH, _ASCENT), (_WIDTH, _ASCENT - _EM)]
    pen.moveTo(corners[0])
    for corner in corners[1:]:
        pen.lineTo(corner)
    pen.closePath()
    rectangle = pen.glyph()
    builder = FontBuilder(_EM, isTTF=True)
    builder.font.recalcTimestamp = False
    builder.updateHead(created=_UNIX_EPOCH, modified=_UNIX_EPOCH)
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap(names)
    builder.setupGlyf(dict.fromkeys([".notdef", *names.values()], rectangle))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names.values()], (_WIDTH, 0)))
    builder.setupHorizontalHeader(ascent=_ASCENT, descent=_ASCENT - _EM)
    builder.setupNameTable({"familyName": _FAMILY, "styleName": "Regular", "psName": _FAMILY})
    builder.setupOS2(sTypoAscender=_ASCENT, sTypoDescender=_ASCENT - _EM, sCapHeight=_ASCENT)
    builder.setupPost()
    encoded = io.BytesIO()
    builder.save(encoded)
    return encoded.getvalue()
