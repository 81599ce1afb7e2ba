"""Documents of several pages, drawn in the test: TIFFs and PDFs, sound and hostile."""

from __future__ import annotations

import ctypes
import io
from collections.abc import Callable, Iterable, Sequence

import pypdfium2
from PIL import Image, ImageDraw, ImageFont
from pypdfium2 import raw

A4 = (595, 842)  # points, 1/72 inch


def page(text: str, size: tuple[int, int] = (900, 300)) -> Image.Image:
    """Return a white page with a line of text."""
    image = Image.new("RGB", size, "white")
    ImageDraw.Draw(image).text((40, 80), text, fill="black", font=ImageFont.load_default(64))
    return image


def tiff(pages: Sequence[Image.Image], **options: object) -> bytes:
    """Return a TIFF of several pages."""
    return _saved("TIFF", pages, **options)


def scanned_pdf(pages: Sequence[Image.Image], dpi: int = 100) -> bytes:
    """Return a PDF whose pages are images, as a scanner writes it."""
    return _saved("PDF", pages, resolution=dpi)


def written_pdf(texts: Iterable[str], size: tuple[int, int] = A4) -> bytes:
    """Return a PDF with a line of text on each page, as a word processor writes it."""
    document = pypdfium2.PdfDocument.new()
    font = raw.FPDFText_LoadStandardFont(document, b"Helvetica")
    for text in texts:
        sheet = document.new_page(*size)
        line = raw.FPDFPageObj_CreateTextObj(document, font, 36.0)
        encoded = ctypes.create_string_buffer(text.encode("utf-16-le") + b"\0\0")
        raw.FPDFText_SetText(line, ctypes.cast(encoded, raw.FPDF_WIDESTRING))
        raw.FPDFPageObj_SetMatrix(line, raw.FS_MATRIX(1, 0, 0, 1, 40, size[1] - 100))
        raw.FPDFPage_InsertObject(sheet, line)
        sheet.gen_content()
        sheet.close()
    out = io.BytesIO()
    document.save(out)
    document.close()
    return out.getvalue()


WRITERS: dict[str, Callable[[Sequence[Image.Image]], bytes]] = {"tiff": tiff, "pdf": scanned_pdf}
"""What writes a document of drawn pages, by format."""


def pdf(*objects: bytes, trailer: bytes = b"") -> bytes:
    """Return a PDF of these objects, numbered from 1; the first is the catalogue."""
    body, places = b"%PDF-1.7\n", list[int]()
    for number, content in enumerate(objects, 1):
        places.append(len(body))
        body += b"%d 0 obj\n%s\nendobj\n" % (number, content)
    table = b"".join(b"%010d 00000 n \n" % at for at in places)
    size = len(objects) + 1
    end = b"trailer\n<< /Size %d /Root 1 0 R %s >>\nstartxref\n%d\n%%%%EOF\n" % (size, trailer, len(body))
    return body + b"xref\n0 %d\n0000000000 65535 f \n%s" % (size, table) + end


def blank_pdf(*, box: bytes = b"0 0 200 200", catalogue: bytes = b"", page: bytes = b"", trailer: bytes = b"") -> bytes:
    """Return a PDF of one page with further entries of its catalogue, page and trailer."""
    return pdf(
        b"<< /Type /Catalog /Pages 2 0 R %s >>" % catalogue,
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [%s] %s >>" % (box, page),
        trailer=trailer,
    )


def stream(content: bytes, entries: bytes = b"") -> bytes:
    """Return a stream object."""
    return b"<< /Length %d %s >>\nstream\n%s\nendstream" % (len(content), entries, content)


def _saved(kind: str, pages: Sequence[Image.Image], **options: object) -> bytes:
    out = io.BytesIO()
    pages[0].save(out, kind, save_all=True, append_images=pages[1:], **options)
    return out.getvalue()
