"""Perceptual hash, palette and ThumbHash of an image, computed on a shrunken copy."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

GLANCE_SIDE = 256  # pixels; enough for all three
_THUMBHASH_SIDE = 100  # the specification's upper bound
_PALETTE = 6

Plane = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Data for similarity search and placeholders."""

    perceptual_hash: str  # 64 bits, 16 hex digits
    palette: tuple[tuple[str, float], ...]  # (#RRGGBB, share of the pixels seen), largest share first
    thumbhash: str  # base64


def fingerprint(image: Image.Image) -> Fingerprint:
    """Fingerprint an upright sRGB image of mode L, RGB or RGBA."""
    small = image.copy() if max(image.size) <= GLANCE_SIDE else _shrunk(image, GLANCE_SIDE)
    rgba = small.convert("RGBA")
    return Fingerprint(perceptual_hash(_on_white(rgba)), palette(rgba), thumbhash(rgba))


def perceptual_hash(image: Image.Image) -> str:
    """Return the 64-bit pHash: which of the 8 x 8 lowest frequencies of a 32 x 32 greyscale copy exceed their median.

    The algorithm and bit order of imagehash.phash (JohannesBuchner/imagehash), without its scipy.
    """
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    n = np.arange(32)
    cosines = 2 * np.cos(np.pi / 64 * np.outer(np.arange(8), 2 * n + 1))  # DCT-II, unnormalised
    low = np.round(cosines @ grey @ cosines.T, 3)  # so that rounding noise never decides a bit of a flat image
    bits = (low > np.median(low)).flatten()
    return f"{int(''.join('1' if bit else '0' for bit in bits), 2):016x}"


def palette(rgba: Image.Image) -> tuple[tuple[str, float], ...]:
    """Return up to six colours with their shares of the visible pixels, largest first."""
    pixels = np.asarray(rgba).reshape(-1, 4)
    seen = pixels[pixels[:, 3] >= 128][:, :3]
    if not len(seen):
        return (("#FFFFFF", 1.0),)
    strip = Image.fromarray(np.ascontiguousarray(seen).reshape(1, -1, 3))
    reduced = strip.quantize(_PALETTE, method=Image.Quantize.MEDIANCUT, kmeans=1, dither=Image.Dither.NONE)
    colours, counts = np.unique(np.asarray(reduced.convert("RGB")).reshape(-1, 3), axis=0, return_counts=True)
    ranked = sorted(zip(counts.tolist(), colours.tolist(), strict=True), reverse=True)
    return tuple((f"#{bytes(colour).hex().upper()}", round(count / len(seen), 4)) for count, colour in ranked)


def thumbhash(rgba: Image.Image) -> str:
    """Return the ThumbHash in base64: the reference encoder of evanw/thumbhash (js/thumbhash.js, rgbaToThumbHash)."""
    if max(rgba.size) > _THUMBHASH_SIDE:
        rgba = _shrunk(rgba, _THUMBHASH_SIDE)
    width, height = rgba.size
    values = np.asarray(rgba, dtype=np.float64) / 255
    alpha = values[..., 3]
    weight = float(alpha.sum())
    colour = values[..., :3] * alpha[..., None]
    mean = colour.sum(axis=(0, 1)) / weight if weight else np.zeros(3)
    has_alpha = weight < width * height
    red, green, blue = np.moveaxis(mean * (1 - alpha[..., None]) + colour, 2, 0)  # composited on the mean colour

    limit, longest = (5 if has_alpha else 7), max(width, height)
    across, down = max(1, _round(limit * width / longest)), max(1, _round(limit * height / longest))
    l_dc, l_ac, l_scale = _waves((red + green + blue) / 3, max(3, across), max(3, down))
    p_dc, p_ac, p_scale = _waves((red + green) / 2 - blue, 3, 3)
    q_dc, q_ac, q_scale = _waves(red - green, 3, 3)
    landscape = width > height
    head = _round(63 * l_dc) | _round(31.5 + 31.5 * p_dc) << 6 | _round(31.5 + 31.5 * q_dc) << 12
    head |= _round(31 * l_scale) << 18 | has_alpha << 23
    rest = (down if landscape else across) | _round(63 * p_scale) << 3 | _round(63 * q_scale) << 9 | landscape << 15
    packed = bytearray(head.to_bytes(3, "little") + rest.to_bytes(2, "little"))
    waves = [*l_ac, *p_ac, *q_ac]
    if has_alpha:
        a_dc, a_ac, a_scale = _waves(alpha, 5, 5)
        packed.append(_round(15 * a_dc) | _round(15 * a_scale) << 4)
        waves += a_ac
    nibbles = [_round(15 * wave) for wave in waves] + [0] * (len(waves) % 2)
    packed += bytes(low | high << 4 for low, high in zip(nibbles[::2], nibbles[1::2], strict=True))
    return base64.b64encode(packed).decode()


def _waves(plane: Plane, across: int, down: int) -> tuple[float, list[float], float]:
    """Return a channel's mean, its low frequencies scaled to 0..1, and their scale."""
    height, width = plane.shape
    x = np.cos(np.pi / width * np.outer(np.arange(across), np.arange(width) + 0.5))
    y = np.cos(np.pi / height * np.outer(np.arange(down), np.arange(height) + 0.5))
    all_waves = y @ plane @ x.T / (width * height)
    kept = [
        float(all_waves[cy, cx])
        for cy in range(down)
        for cx in range(across)
        if (cx or cy) and cx * down < across * (down - cy)
    ]
    scale = max((abs(wave) for wave in kept), default=0.0)
    return float(all_waves[0, 0]), [0.5 + 0.5 / scale * wave if scale else 0.0 for wave in kept], scale


def _round(value: float) -> int:
    return math.floor(value + 0.5)  # as JavaScript's Math.round


def _on_white(rgba: Image.Image) -> Image.Image:
    white = Image.new("RGBA", rgba.size, "white")
    white.alpha_composite(rgba)
    return white.convert("RGB")


def _shrunk(image: Image.Image, side: int) -> Image.Image:
    factor = side / max(image.size)
    size = (max(1, round(image.width * factor)), max(1, round(image.height * factor)))
    return image.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
