"""ALTO XML 4.4 (https://www.loc.gov/standards/alto/): text with its boxes for libraries and archives."""

from __future__ import annotations

from collections.abc import Sequence
from xml.etree.ElementTree import Element, SubElement, tostring

from gateway.images.text_formats.layout import Polygon, blocks_of, box_of
from schemas.stored.results import TextPage

_NAMESPACE = "http://www.loc.gov/standards/alto/ns-v4#"
_SCHEMA = f"{_NAMESPACE} https://www.loc.gov/standards/alto/v4/alto-4-4.xsd"


def alto(pages: Sequence[TextPage]) -> bytes:
    """Return pages as ALTO in UTF-8: lengths in pixels of the page, `WC` from 0 to 1."""
    instance = {"xmlns:xsi": "http://www.w3.org/2001/XMLSchema-instance", "xsi:schemaLocation": _SCHEMA}
    root = Element("alto", {"xmlns": _NAMESPACE, **instance, "SCHEMAVERSION": "4.4"})
    description = SubElement(root, "Description")
    SubElement(description, "MeasurementUnit").text = "pixel"
    software = SubElement(SubElement(description, "Processing", ID="ocr"), "processingSoftware")
    SubElement(software, "softwareName").text = "darkroom"
    layout = SubElement(root, "Layout")
    for number, page in enumerate(pages, 1):
        _add_page(layout, page, number)
    document: bytes = tostring(root, encoding="utf-8", xml_declaration=True)
    return document


def _add_page(layout: Element, page: TextPage, number: int) -> None:
    size = {"WIDTH": str(page.width), "HEIGHT": str(page.height)}
    shown = SubElement(layout, "Page", size, ID=f"page_{number}", PHYSICAL_IMG_NR=str(number))
    space = SubElement(shown, "PrintSpace", size, HPOS="0", VPOS="0")
    line_number = 0
    for block_number, lines in enumerate(blocks_of(page), 1):
        place = _place([line.polygon for line in lines], page)
        block = SubElement(space, "TextBlock", place, ID=f"block_{number}_{block_number}")
        for line in lines:
            line_number += 1
            name = f"{number}_{line_number}"
            place = _place([line.polygon], page)
            row = SubElement(block, "TextLine", place, ID=f"line_{name}", LANG=line.language)
            for word_number, word in enumerate(line.words, 1):
                place = _place([word.polygon], page) | {"CONTENT": word.text, "WC": f"{word.confidence:.2f}"}
                SubElement(row, "String", place, ID=f"word_{name}_{word_number}")
                if word.spaced and word_number < len(line.words):
                    SubElement(row, "SP")


def _place(polygons: Sequence[Polygon], page: TextPage) -> dict[str, str]:
    box = box_of(polygons, page)
    size = {"WIDTH": str(box.right - box.left), "HEIGHT": str(box.bottom - box.top)}
    return {"HPOS": str(box.left), "VPOS": str(box.top), **size}
