"""Barcodes drawn by ZXing-C++'s own writer."""

from __future__ import annotations

import numpy as np
import zxingcpp
from PIL import Image


def drawn(value: str | bytes, kind: zxingcpp.BarcodeFormat, *, scale: int = 4) -> Image.Image:
    """Return an image of a code with a white margin, `scale` pixels a module."""
    pixels = np.asarray(zxingcpp.create_barcode(value, kind).to_image(scale=scale))
    return Image.fromarray(np.pad(pixels, 4 * scale, constant_values=255)).convert("RGB")
