"""BMP that Pillow reads not or otherwise than browsers do: samples by bit masks, alpha, and run-length encoding.

BITMAPINFOHEADER, BITMAPV4HEADER and BITMAPV5HEADER (Microsoft, "Bitmap header types" and "Bitmap compression"). What
these leave open is as in Chromium: an alpha mask of a V4 or V5 header counts whatever the compression, alpha that is 0
everywhere counts as absent, and pixels that run-length encoding skips are transparent.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from agents.core.formats.bmp_runs import runs

_RGB, _RLE8, _RLE4, _BITFIELDS, _ALPHA_BITFIELDS = 0, 1, 2, 3, 6
_WINDOWS_HEADERS = {40, 52, 56, 64, 108, 124}
_DEFAULT_MASKS = {16: (0x7C00, 0x03E0, 0x001F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}
_BAND = 256  # rows converted at a time

Masks = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Header:
    """Dimensions and layout of the pixels."""

    width: int  # pixels
    height: int
    top_down: bool
    bits: int  # per pixel
    compression: int
    masks: Masks  # red, green, blue, alpha; 0 if absent
    palette: npt.NDArray[np.uint8]  # (entries, 3) RGB
    offset: int  # of the pixels, bytes


def read_header(data: bytes) -> Header | None:
    """Return the header of a BMP that decode() reads, None of any other. Raises struct.error if the header is cut."""
    offset, size = struct.unpack_from("<II", data, 10)
    if size not in _WINDOWS_HEADERS:
        return None
    width, height, _, bits, compression = struct.unpack_from("<iiHHI", data, 18)
    by_masks = bits in _DEFAULT_MASKS and compression in {_RGB, _BITFIELDS, _ALPHA_BITFIELDS}
    if not by_masks and (compression, bits) not in {(_RLE8, 8), (_RLE4, 4)}:
        return None
    masks, end = _masks(data, size, bits, compression) if by_masks else ((), 14 + size)
    palette = np.zeros((0, 3), np.uint8) if by_masks else _palette(data, end, bits)
    return Header(width, abs(height), height < 0, bits, compression, masks, palette, offset or end + 4 * len(palette))


def decode(data: bytes, header: Header) -> Image.Image:
    """Return the pixels as P, RGB or RGBA. Raises EOFError if some are missing, ValueError if they are damaged."""
    return _decoded_runs(data, header) if header.compression in {_RLE8, _RLE4} else _decoded_samples(data, header)


def _masks(data: bytes, size: int, bits: int, compression: int) -> tuple[Masks, int]:
    """Return the masks of red, green, blue and alpha, and where the header with its masks ends."""
    end, kept = 14 + size, (1 << bits) - 1
    has_alpha = size in {56, 108, 124}
    alpha = struct.unpack_from("<I", data, 66)[0] & kept if has_alpha else 0
    if compression == _RGB:
        return (*_DEFAULT_MASKS[bits][:3], alpha), end
    count = 4 if has_alpha or compression == _ALPHA_BITFIELDS else 3
    masks = struct.unpack_from(f"<{count}I", data, 54)
    if size == 40:
        end += 4 * count
    if not any(masks):
        return (*_DEFAULT_MASKS[bits][:3], 0xFF000000 & kept), end
    return (*(mask & kept for mask in (*masks, 0)[:4]),), end


def _palette(data: bytes, start: int, bits: int) -> npt.NDArray[np.uint8]:
    """Return the colour table as RGB, black where the file has no entry."""
    count = struct.unpack_from("<I", data, 46)[0]
    entries = data[start : start + 4 * min(count or 256, 1 << bits)]
    palette = np.zeros((1 << bits, 4), np.uint8)
    stored = np.frombuffer(entries[: len(entries) // 4 * 4], np.uint8).reshape(-1, 4)
    palette[: len(stored)] = stored
    return palette[:, 2::-1]


def _decoded_samples(data: bytes, header: Header) -> Image.Image:
    stride = (header.width * header.bits // 8 + 3) // 4 * 4
    if len(data) < header.offset + stride * (header.height - 1) + header.width * header.bits // 8:
        raise EOFError("truncated")
    channels = [_Channel(mask) for mask in header.masks]
    image = Image.new("RGB", (header.width, header.height))
    alpha = Image.new("L", image.size, 255) if header.masks[3] else None
    kind = np.dtype(f"<u{header.bits // 8}")
    for first in range(0, header.height, _BAND):
        count = min(_BAND, header.height - first)
        lines = [
            np.frombuffer(data, kind, header.width, header.offset + line * stride)
            for line in range(first, first + count)
        ]
        pixels = np.stack(lines if header.top_down else lines[::-1])
        top = first if header.top_down else header.height - first - count
        red, green, blue, *opacity = (channel.samples(pixels) for channel in channels)
        image.paste(Image.fromarray(np.stack([red, green, blue], axis=-1)), (0, top))
        if alpha is not None:
            alpha.paste(Image.fromarray(opacity[0]), (0, top))
    if alpha is not None and alpha.getextrema() != (0, 0):
        image.putalpha(alpha)
    return image


class _Channel:
    """Where a channel's samples lie in a pixel, and their scale."""

    def __init__(self, mask: int) -> None:
        self._shift = (mask & -mask).bit_length() - 1 if mask else 0
        most = mask >> self._shift
        if most & (most + 1):
            raise ValueError("a mask has gaps")
        spare = max(most.bit_length() - 8, 0)  # of wider samples the upper 8 bits count
        self._shift, self._most = self._shift + spare, most >> spare
        scale = np.arange(self._most + 1) * 255 / max(self._most, 1)
        self._scaled = np.round(scale).astype(np.uint8)

    def samples(self, pixels: npt.NDArray[np.unsignedinteger]) -> npt.NDArray[np.uint8]:
        """Return the channel's samples, 0 to 255, of whole pixels."""
        return self._scaled.take((pixels >> self._shift) & self._most)


def _decoded_runs(data: bytes, header: Header) -> Image.Image:
    indices, written = runs(
        memoryview(data)[header.offset :], header.width, header.height, nibbles=header.compression == _RLE4
    )
    direction = 1 if header.top_down else -1
    size = (header.width, header.height)
    image = Image.frombytes("P", size, bytes(indices), "raw", "P", 0, direction)
    image.putpalette(header.palette.tobytes())
    if written is None:
        return image
    shown = image.convert("RGB")
    shown.putalpha(Image.frombytes("L", size, bytes(written), "raw", "L", 0, direction))
    return shown
