"""Make the renditions of a sanitized image: decode once, shrink each from the next larger one, encode as WebP.

Measured on a 12-megapixel, 2 MB JPEG (bench.renditions; 2 cores, Pillow 13, libvips 8.18, OpenCV 5): encoding the
largest rendition is most of the work, and its effort the lever. WebP effort 4 takes 0.80 s for 632 KB, effort 2 0.34 s
for 655 KB, effort 1 0.26 s for 770 KB; libvips needs 0.93, 0.40 and 0.29 s for the same bytes, OpenCV has no such
setting. So: Pillow, effort 2. It shares libjpeg-turbo and libwebp with the others, and holds the fewest copies.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass

from PIL import Image

Image.MAX_IMAGE_PIXELS = None  # a master was measured by the sanitizer; see max_pixels below

WEBP_QUALITY = 85
WEBP_EFFORT = 2  # libwebp's `method`, 0 to 6
_MASTER_FORMATS = ("JPEG", "PNG")


@dataclass(frozen=True, slots=True)
class Shrunk:
    """One rendition before it is encoded. Renditions of the same size share one image."""

    name: str
    image: Image.Image


def shrink(master: bytes, sides: Mapping[str, int], *, max_pixels: int = 100_000_000) -> tuple[Shrunk, ...]:
    """Return an image per name, its longest side as given in pixels but never enlarged; the largest last.

    The master is a JPEG or PNG that the sanitizer wrote; ValueError if it is larger than max_pixels.
    """
    image: Image.Image = Image.open(io.BytesIO(master), formats=_MASTER_FORMATS)
    if image.width * image.height > max_pixels:
        raise ValueError(f"a master of {image.width} x {image.height} pixels")
    full = image.size
    ordered = sorted(sides.items(), key=lambda item: item[1], reverse=True)
    largest = fitted(full, ordered[0][1])
    image.draft(None, largest)  # JPEG: decode at 1/2, 1/4 or 1/8 where that is still large enough
    image.load()
    made: list[Shrunk] = []
    for name, side in ordered:
        size = fitted(full, side)
        if size != image.size:
            image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
        made.append(Shrunk(name, image))
    return tuple(reversed(made))


def encode(image: Image.Image) -> bytes:
    """Return the image as WebP, its alpha kept, without metadata; the same pixels give the same bytes."""
    out = io.BytesIO()
    image.info = {}
    image.save(out, "WEBP", quality=WEBP_QUALITY, method=WEBP_EFFORT)
    return out.getvalue()


def fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return width and height with the longest side at most `side`, the ratio kept, neither below 1."""
    longest = max(size)
    if longest <= side:
        return size
    width, height = (max(1, round(length * side / longest)) for length in size)
    return width, height
