"""PDF: draws one page with PDFium. Only pixels are taken: scripts do not run, attachments and links are not read.

Annotations and form fields are drawn as the file shows them, without opening the form. Fonts that a file does not
contain are PDFium's own, never the system's, so that equal files give equal pixels. ISO 32000-1, section 7.5 and
annex C.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager

import pypdfium2
from PIL import Image, ImageChops
from pypdfium2 import raw

MAX_POINTS = 14_400  # of a side of a page, each 1/72 inch (annex C)
_END, _END_WITHIN = b"%%EOF", 1024  # bytes before the end, without padding, in which readers look for the marker
_PASSWORD = raw.FPDF_ERR_PASSWORD, raw.FPDF_ERR_SECURITY
_NO_FONTS = (ctypes.POINTER(ctypes.c_char) * 1)()  # an empty list of folders, ended by NULL

raw.FPDF_DestroyLibrary()
raw.FPDF_InitLibraryWithConfig(raw.FPDF_LIBRARY_CONFIG(version=2, m_pUserFontPaths=_NO_FONTS))


class Locked(Exception):
    """The file needs a password, or is encrypted in a way that PDFium does not know."""


@contextmanager
def opened(data: bytes) -> Iterator[pypdfium2.PdfDocument]:
    """Open a PDF. Raises EOFError if its end is missing, Locked, and ValueError if it is damaged or has no pages."""
    if _END not in data.rstrip(b"\0\t\r\n ")[-_END_WITHIN:]:
        raise EOFError("truncated")
    try:
        document = pypdfium2.PdfDocument(data)
    except pypdfium2.PdfiumError as error:
        # Without pages, the error is that of the file before.
        if error.err_code in _PASSWORD and b"/Encrypt" in data:
            raise Locked from error
        raise ValueError("damaged") from error
    with document:
        yield document


def size_of(page: pypdfium2.PdfPage, dpi: int, max_side: int, max_pixels: int) -> tuple[int, int]:
    """Return width and height in pixels at a resolution, or at the highest one within the limits.

    A page larger than PDF allows is not scaled down.
    """
    width, height = page.get_size()
    scale = dpi / 72
    if max(width, height) <= MAX_POINTS and min(width, height) > 0:
        scale = min(scale, max_side / max(width, height), math.sqrt(max_pixels / (width * height)))
    return max(int(width * scale), 1), max(int(height * scale), 1)


def drawn(document: pypdfium2.PdfDocument, number: int, size: tuple[int, int]) -> Image.Image:
    """Return a page, counted from 1, on white: RGB, or L if it has no colours."""
    raw.FPDFPage_Flatten(document[number - 1], raw.FLAT_NORMALDISPLAY)  # seen by pages loaded after this
    page = document[number - 1]
    bitmap = pypdfium2.PdfBitmap.new_native(*size, raw.FPDFBitmap_BGR)
    bitmap.fill_rect((255, 255, 255, 255), 0, 0, *size)
    raw.FPDF_RenderPageBitmap(bitmap, page, 0, 0, *size, 0, raw.FPDF_ANNOT)
    image: Image.Image = bitmap.to_pil()
    red, green, blue = image.split()
    is_grey = all(ImageChops.difference(red, other).getbbox() is None for other in (green, blue))
    return red if is_grey else image
