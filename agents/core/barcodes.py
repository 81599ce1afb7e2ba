"""Barcodes of an image: matrix and linear codes of any direction, found and decoded by ZXing-C++."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from importlib.metadata import version
from itertools import accumulate
from typing import Literal

import numpy as np
import zxingcpp
from PIL import Image
from pydantic import Field

from schemas.values import Value

VERSION = version("zxing-cpp")
MOST_CODES = 100  # of one image
_MOST_BYTES = 131_072  # of an image's codes as JSON: a fact has 262 144 at most
_LONGEST = 8192  # characters of a value; a QR code has 7089 digits at most (ISO/IEC 18004)
_NOT_TEXT = (zxingcpp.ContentType.Binary, zxingcpp.ContentType.Mixed, zxingcpp.ContentType.UnknownECI)


class Barcode(Value):
    """One code, with its value as text or, if its bytes are no text, as base64."""

    format: str = Field(max_length=64, examples=["QR Code", "EAN-13", "Code 128", "Data Matrix", "PDF417", "Aztec"])
    value: str = Field(max_length=_LONGEST)
    encoding: Literal["text", "base64"] = "text"
    polygon: tuple[tuple[float, float], ...] = Field(
        max_length=4, description="pixels of the sanitized image, clockwise from the code's top left"
    )


def check() -> None:
    """Read a code that is drawn for it. Raises ValueError if anything else is read."""
    code = zxingcpp.create_barcode("DARKROOM", zxingcpp.BarcodeFormat.QRCode)
    drawn = Image.fromarray(np.asarray(code.to_image(scale=4)))
    found = [code.value for code in barcodes_in(drawn, width=drawn.width, height=drawn.height)]
    if found != ["DARKROOM"]:
        raise ValueError(f"{found} was read instead of DARKROOM")


def barcodes_in(
    image: Image.Image, *, width: int, height: int, most: int = MOST_CODES, turned: float = 0
) -> tuple[Barcode, ...]:
    """Return the codes of an image, from top to bottom, in pixels of the image it was scaled down from.

    At most `most`, and of all values what an event can carry: the uppermost ones. The image is turned by degrees before
    it is read: linear codes are found up to 25 degrees askew, matrix codes at any angle.
    """
    seen = image.convert("L")
    if turned:
        seen = seen.rotate(turned, Image.Resampling.BICUBIC, expand=True, fillcolor=255)
    read = zxingcpp.read_barcodes(np.asarray(seen), text_mode=zxingcpp.TextMode.Plain)
    cosine, sine = math.cos(math.radians(turned)), math.sin(math.radians(turned))

    def back(point: zxingcpp.Point) -> tuple[float, float]:
        x, y = point.x - seen.width / 2, point.y - seen.height / 2
        across, down = x * cosine - y * sine + image.width / 2, x * sine + y * cosine + image.height / 2
        return round(across * width / image.width, 1), round(down * height / image.height, 1)

    found = [_barcode(code, back) for code in read]
    found.sort(key=lambda code: (code.polygon[0][1], code.polygon[0][0]))
    sizes = accumulate(len(code.model_dump_json()) for code in found)
    return tuple(code for code, size in zip(found, sizes, strict=True) if size <= _MOST_BYTES)[:most]


def _barcode(code: zxingcpp.Barcode, back: Callable[[zxingcpp.Point], tuple[float, float]]) -> Barcode:
    place = code.position
    corners = (place.top_left, place.top_right, place.bottom_right, place.bottom_left)
    is_text = code.content_type not in _NOT_TEXT
    return Barcode(
        format=str(code.format),
        value=(code.text if is_text else base64.b64encode(code.bytes).decode())[:_LONGEST],
        encoding="text" if is_text else "base64",
        polygon=tuple(back(corner) for corner in corners),
    )
