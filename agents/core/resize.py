"""Renditions of a sanitized image: decode once, shrink from the largest rendition, encode as WebP.

Measured on a 12-megapixel, 2 MB JPEG (2 cores, Pillow 13, libvips 8.18, OpenCV 5; `python -m bench.renditions`):
encoding the largest rendition takes most of the time, its effort decides. Effort 4 takes 0.80 s for 632 KB, 2 takes
0.34 s for 655 KB, 1 takes 0.26 s for 770 KB; libvips needs 0.93, 0.40 and 0.29 s for the same bytes, OpenCV has no such
setting. So: Pillow, which shares libjpeg-turbo and libwebp with both; effort 2 above a size, and 4 below it, where it
costs little and these bytes are transferred most. Each rendition comes from the largest one, not from the next larger:
a chain saves 0.2 s of the second core, which is idle while the first encodes, and costs visible detail (SSIM 0.977
instead of 1.0 to Lanczos from full size).
"""

from __future__ import annotations

import io
from collections.abc import Iterable

from PIL import Image

_open = Image.open  # on import ultralytics replaces Image.open by one with other errors
Image.MAX_IMAGE_PIXELS = None  # the sanitizer measured the master; see max_pixels below

WEBP_QUALITY = 85
WEBP_EFFORT = 4  # libwebp's `method`, 0 to 6
WEBP_EFFORT_LARGE = 2
LARGE_PIXELS = 2_000_000  # from this size on an image is encoded with less effort
_MASTER_FORMATS = ("JPEG", "PNG")

Size = tuple[int, int]


def open_master(master: bytes, sides: Iterable[int], *, max_pixels: int = 100_000_000) -> Image.Image:
    """Return the pixels of the largest rendition, whose longest side is the largest of `sides`, never enlarged.

    The master is a JPEG or PNG that the sanitizer wrote; ValueError if it is larger than max_pixels.
    """
    image: Image.Image = _open(io.BytesIO(master), formats=_MASTER_FORMATS)
    if image.width * image.height > max_pixels:
        raise ValueError(f"a master of {image.width} x {image.height} pixels")
    largest = fitted(image.size, max(sides))
    image.draft(None, largest)  # JPEG: decode at 1/2, 1/4 or 1/8 where that is still large enough
    image.load()
    image.info = {}
    return _resized(image, largest)


def render(image: Image.Image, size: Size) -> bytes:
    """Return the image in that size as WebP with alpha, without metadata; equal pixels give equal bytes."""
    out = io.BytesIO()
    effort = WEBP_EFFORT if size[0] * size[1] < LARGE_PIXELS else WEBP_EFFORT_LARGE
    _resized(image, size).save(out, "WEBP", quality=WEBP_QUALITY, method=effort)
    return out.getvalue()


def fitted(size: Size, side: int) -> Size:
    """Return width and height with the longest side at most `side`, the ratio kept, each at least 1."""
    longest = max(size)
    if longest <= side:
        return size
    width, height = (max(1, round(length * side / longest)) for length in size)
    return width, height


def _resized(image: Image.Image, size: Size) -> Image.Image:
    return image if image.size == size else image.resize(size, Image.Resampling.LANCZOS)
