"""The encoder's protocol, its input from an image, and the checks of its vectors.

The preprocessing is CLIP's (Radford et al. 2021), bit-identical to open_clip's `image_transform(224)` on the same
Pillow: shortest side to 224 by bicubic, centre crop, RGB, scaled to 0..1, normalised per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image

Floats = npt.NDArray[np.float32]

SIDE = 224
DIMENSIONS = 512
_THINNEST = 1024  # longest side / shortest side; beyond it only the middle is scaled, which else takes gigabytes
_MEAN = np.array((0.48145466, 0.4578275, 0.40821073), dtype=np.float32)[:, None, None]
_STD = np.array((0.26862954, 0.26130258, 0.27577711), dtype=np.float32)[:, None, None]


class Encoder(Protocol):
    """Encodes prepared images as unit vectors: (n, 3, 224, 224) float32 in, (n, 512) float32 out."""

    def encode(self, prepared: Floats) -> Floats:
        """Return one L2-normalised vector per image, in order."""


class Collapsed(ValueError):
    """An encoder's output is unusable: NaN, zero, or all equal."""


def prepare(image: Image.Image) -> Floats:
    """Return an image as CLIP's input, (3, 224, 224) float32."""
    image = _middle(image)
    width, height = image.size
    short, long = min(width, height), max(width, height)
    scaled_long = int(SIDE * long / short)  # truncated, not rounded, as torchvision's Resize does
    size = (SIDE, scaled_long) if width <= height else (scaled_long, SIDE)
    small = image.resize(size, Image.Resampling.BICUBIC) if image.size != size else image
    left, top = round((size[0] - SIDE) / 2.0), round((size[1] - SIDE) / 2.0)
    cropped = small.crop((left, top, left + SIDE, top + SIDE)).convert("RGB")
    scaled = np.asarray(cropped, dtype=np.uint8).transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    prepared: Floats = (scaled - _MEAN) / _STD
    return prepared


def _middle(image: Image.Image) -> Image.Image:
    """Return the middle of an image that is thinner than `_THINNEST`, since the centre crop shows no more; else it."""
    width, height = image.size
    across, down = (max(0, long - _THINNEST * short) // 2 for long, short in ((width, height), (height, width)))
    return image.crop((across, down, width - across, height - down)) if across or down else image


def normalise(raw: npt.NDArray[np.floating]) -> Floats:
    """Return the rows scaled to unit length, as float32. Raises Collapsed for a zero or non-finite row."""
    rows = raw.astype(np.float32)
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    if not np.isfinite(lengths).all() or (lengths == 0).any():
        raise Collapsed("a vector is zero or not finite")
    unit: Floats = rows / lengths
    return unit


def check_distinct(vectors: Floats, *, closest: float = 0.9999) -> None:
    """Check that vectors of different inputs differ. Raises Collapsed when any pair has a cosine above `closest`."""
    if not np.isfinite(vectors).all():
        raise Collapsed("a vector is not finite")
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1.0)
    if len(vectors) > 1 and float(cosines.max()) > closest:
        raise Collapsed(f"vectors of different images have a cosine of {float(cosines.max()):.6f}")


def rank(query: Floats, vectors: Floats) -> Sequence[int]:
    """Return the indexes of unit vectors by descending cosine to a unit query."""
    order: list[int] = np.argsort(-(vectors @ query), kind="stable").tolist()
    return order
