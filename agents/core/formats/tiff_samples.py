"""The samples of a TIFF's planes as an image of 8 bits a channel.

Predictors: TIFF 6.0, section 14, and Adobe Photoshop TIFF Technical Note 3. Floats between 0 and 1 keep their values,
other ranges are stretched, as for grey images in colour.py.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from PIL import Image

from agents.core.formats.tiff import COLOURS, FLOAT, WEBP, Layout, planes
from agents.core.frames import webp_frames

_BAND = 64  # rows converted at a time
_HORIZONTAL, _FLOATING = 2, 3  # predictors
_SIGNED = 2  # kind of samples
_MODES = {0: "L", 1: "L", 2: "RGB", 5: "CMYK", 8: "LAB"}
_WHITE_IS_ZERO, _LAB = 0, 8

Samples = npt.NDArray[np.number]
Bytes = npt.NDArray[np.uint8]


def decode(data: bytes, layout: Layout) -> Image.Image:
    """Return the first page as L, RGB, CMYK, LAB, RGBA or LA, with EXIF orientation and ICC profile in `info`.

    Raises EOFError, OSError or ValueError for a damaged file, MemoryError beyond 600 MB of samples.
    """
    image = _from_webp(data, layout) if layout.compression == WEBP else _from_planes(data, layout)
    exif = Image.Exif()
    exif[0x0112] = layout.orientation
    image.info = {"exif": exif.tobytes()}
    if layout.icc:
        image.info["icc_profile"] = layout.icc
    return image


def _from_webp(data: bytes, layout: Layout) -> Image.Image:
    """Paste segments that are WebP images of the segment's dimensions."""
    mode = "RGBA" if layout.samples == 4 else "RGB"
    if len(layout.segments) < layout.across * layout.down:
        raise EOFError("truncated")
    whole = Image.new(mode, (layout.width, layout.height))
    for place, (start, size) in enumerate(layout.segments[: layout.across * layout.down]):
        left, top = place % layout.across * layout.segment_width, place // layout.across * layout.segment_height
        if start + size > len(data):
            raise EOFError("truncated")
        part = data[start : start + size]
        declared = webp_frames(part, 1)  # before the decoder allocates a canvas of that size
        if declared.width > layout.segment_width or declared.height > layout.segment_height:
            raise ValueError("a segment is larger than its directory says")
        wanted = min(layout.segment_width, layout.width - left), min(layout.segment_height, layout.height - top)
        if declared.width < wanted[0] or declared.height < wanted[1]:
            raise EOFError("truncated")
        segment = Image.open(io.BytesIO(part), formats=("WEBP",))
        whole.paste(segment.convert(mode), (left, top))
    return whole


def _from_planes(data: bytes, layout: Layout) -> Image.Image:
    raw = [np.asarray(plane) for plane in planes(data, layout)]
    colours = COLOURS[layout.photometric]
    low, high = _range(raw, layout, colours)
    image = Image.new(_MODES[layout.photometric], (layout.width, layout.height))
    alpha = Image.new("L", image.size) if layout.extra in {1, 2} else None
    for top, samples in _bands(raw, layout):
        shown = _eight_bits(samples[..., :colours], layout, low, high)
        if alpha is not None:
            top_value = 1.0 if layout.kind == FLOAT else _full_scale(layout)[1]
            opacity = _scaled(samples[..., colours], 0.0, top_value)
            alpha.paste(Image.fromarray(opacity), (0, top))
            if layout.extra == 1:
                shown = _unmultiplied(shown, opacity)
        size = (layout.width, len(samples))
        image.paste(Image.frombytes(image.mode, size, shown.tobytes(), "raw", image.mode), (0, top))
    if alpha is not None and image.mode in {"L", "RGB"}:
        image.putalpha(alpha)
    return image


def _bands(raw: list[Bytes], layout: Layout) -> Iterator[tuple[int, Samples]]:
    """Yield the position of a band of rows and its samples, (rows, width, samples)."""
    for top in range(0, layout.height, _BAND):
        rows = min(_BAND, layout.height - top)
        found = [_samples(plane[top : top + rows], layout)[:, : layout.width] for plane in raw]
        yield top, np.concatenate(found, axis=-1) if layout.separate else found[0]


def _samples(rows: Bytes, layout: Layout) -> Samples:
    """Return the samples of a plane's rows, (rows, padded width, samples in the plane), predictors undone."""
    segmented = rows.reshape(len(rows), layout.across, layout.segment_row)
    per_row = layout.segment_width * layout.in_plane
    if layout.kind == FLOAT and layout.predictor == _FLOATING:
        summed = segmented.reshape(*segmented.shape[:2], -1, layout.in_plane).cumsum(axis=2, dtype=np.uint8)
        split = summed.reshape(*segmented.shape[:2], layout.bits // 8, per_row)
        ordered = np.ascontiguousarray(np.moveaxis(split, 2, 3))  # the most significant byte first
        values = ordered.view(f">f{layout.bits // 8}")
    elif layout.bits % 8 == 0 and layout.bits != 24:
        letter = {1: "u", 2: "i", FLOAT: "f"}[layout.kind]
        order = "<" if layout.little_endian else ">"
        values = np.ascontiguousarray(segmented).view(f"{order}{letter}{layout.bits // 8}")
    else:
        values = _unpacked(segmented, layout, per_row)
    values = values.reshape(len(rows), layout.across, layout.segment_width, layout.in_plane)
    if layout.predictor == _HORIZONTAL:
        values = values.cumsum(axis=2, dtype=values.dtype.newbyteorder("="))
    return values.reshape(len(rows), -1, layout.in_plane)


def _unpacked(segmented: Bytes, layout: Layout, per_row: int) -> Samples:
    """Return samples of any number of bits, packed from the most significant bit on."""
    first = np.arange(per_row) * layout.bits
    count, kind = (3, np.uint32) if layout.bits <= 16 else (5, np.uint64)  # bytes that a sample may lie in
    padded = np.pad(segmented, ((0, 0), (0, 0), (0, count)))
    window = np.zeros((*segmented.shape[:2], per_row), kind)
    for place in range(count):
        window = window << kind(8) | padded.take((first >> 3) + place, axis=-1)
    values: Samples = window >> (8 * count - (first & 7) - layout.bits).astype(kind) & kind((1 << layout.bits) - 1)
    if layout.kind != _SIGNED:
        return values
    sign = 1 << layout.bits - 1
    signed: Samples = (values.astype(np.int64) ^ sign) - sign
    return signed


def _full_scale(layout: Layout) -> tuple[float, float]:
    most = float((1 << layout.bits) - 1)
    return (-(most + 1) / 2, (most - 1) / 2) if layout.kind == _SIGNED else (0.0, most)


def _range(raw: list[Bytes], layout: Layout, colours: int) -> tuple[float, float]:
    """Return which values are black and white."""
    if layout.kind != FLOAT:
        return _full_scale(layout)
    low, high = np.inf, -np.inf
    for _, samples in _bands(raw, layout):
        values = _finite(samples[..., :colours])
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return (0.0, 1.0) if low >= 0 and high <= 1 else (low, high)


def _finite(values: Samples) -> npt.NDArray[np.floating]:
    """Return the values as floats, precise enough for 8 bits; 0 for what is no number."""
    wide: npt.NDArray[np.floating] = values.astype(np.float64 if _is_wide(values) else np.float32)
    if values.dtype.kind == "f":
        np.nan_to_num(wide, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
    return wide


def _is_wide(values: Samples) -> bool:
    return values.dtype.itemsize > 4 or (values.dtype.kind == "f" and values.dtype.itemsize > 2)


def _eight_bits(samples: Samples, layout: Layout, low: float, high: float) -> Bytes:
    """Return the colours as bytes, in Pillow's order and sense."""
    if layout.photometric == _LAB and layout.kind != FLOAT:
        lightness = _scaled(samples[..., :1], 0.0, float((1 << layout.bits) - 1))
        hue = (samples[..., 1:].astype(np.int64) >> layout.bits - 8 & 255).astype(np.uint8)  # signed
        return np.concatenate([lightness, hue], axis=-1)
    scaled = _scaled(samples, low, high)
    return 255 - scaled if layout.photometric == _WHITE_IS_ZERO else scaled


def _scaled(samples: Samples, low: float, high: float) -> Bytes:
    factor = 255.0 / (high - low) if high > low else 0.0
    scaled: Bytes = ((_finite(samples) - low) * factor + 0.5).clip(0, 255).astype(np.uint8)
    return scaled


def _unmultiplied(shown: Bytes, opacity: Bytes) -> Bytes:
    """Return colours that were multiplied by their alpha, divided by it."""
    divisor = np.maximum(opacity, 1)[..., None].astype(np.float64)
    return np.round(shown * 255.0 / divisor).clip(0, 255).astype(np.uint8)
