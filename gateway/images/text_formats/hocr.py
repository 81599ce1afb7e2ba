"""hOCR 1.2 (http://kba.github.io/hocr-spec/1.2/): text with its boxes as XHTML."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from gateway.images.text_formats.layout import Polygon, blocks_of, box_of
from schemas.stored.results import TextPage

_HEAD = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN" '
    b'"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">\n'
)
_CLASSES = "ocr_page ocr_carea ocr_par ocr_line ocrx_word"


def hocr(pages: Sequence[TextPage]) -> bytes:
    """Return pages as hOCR in UTF-8: `bbox` in pixels of the page, `x_wconf` from 0 to 100."""
    html = Element("html", xmlns="http://www.w3.org/1999/xhtml")
    head = SubElement(html, "head")
    SubElement(head, "title").text = "Text"
    SubElement(head, "meta", {"http-equiv": "Content-Type", "content": "text/html; charset=utf-8"})
    SubElement(head, "meta", name="ocr-system", content="darkroom")
    SubElement(head, "meta", name="ocr-number-of-pages", content=str(len(pages)))
    SubElement(head, "meta", name="ocr-capabilities", content=_CLASSES)
    body = SubElement(html, "body")
    for number, page in enumerate(pages, 1):
        _add_page(body, page, number)
    document: bytes = tostring(html, encoding="utf-8", short_empty_elements=False)  # HTML has none
    return _HEAD + document


def _add_page(body: Element, page: TextPage, number: int) -> None:
    outline = {"class": "ocr_page", "id": f"page_{number}"}
    place = f"bbox 0 0 {page.width} {page.height}; ppageno {number - 1}"
    shown = SubElement(body, "div", outline, title=place)
    line_number = 0
    for block_number, lines in enumerate(blocks_of(page), 1):
        around = _bbox([line.polygon for line in lines], page)
        name = f"{number}_{block_number}"
        area = SubElement(shown, "div", {"class": "ocr_carea", "id": f"block_{name}"}, title=around)
        paragraph = SubElement(area, "p", {"class": "ocr_par", "id": f"par_{name}"}, title=around)
        for line in lines:
            line_number += 1
            names = {"class": "ocr_line", "id": f"line_{number}_{line_number}", "lang": line.language}
            row = SubElement(paragraph, "span", names, title=_bbox([line.polygon], page))
            row.tail = "\n"
            for word_number, word in enumerate(line.words, 1):
                names = {"class": "ocrx_word", "id": f"word_{number}_{line_number}_{word_number}"}
                sure = f"{_bbox([word.polygon], page)}; x_wconf {round(word.confidence * 100)}"
                one = SubElement(row, "span", names, title=sure)
                one.text, one.tail = word.text, " " if word.spaced else None


def _bbox(polygons: Sequence[Polygon], page: TextPage) -> str:
    box = box_of(polygons, page)
    return f"bbox {box.left} {box.top} {box.right} {box.bottom}"
