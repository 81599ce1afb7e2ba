"""Counts the frames of an animation from its structure: no pixel is decoded, no canvas allocated.

Pillow's own counters decode as they go (GIF) or allocate two canvases first (WebP).
GIF: GIF89a specification, sections 18 to 27. WebP: RFC 9649, sections 2.5 to 2.7.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Frames:
    """Dimensions and frames according to the headers."""

    width: int  # pixels
    height: int
    count: int
    pixels: int  # over all frames
    lossless: bool = False


def gif_frames(data: bytes, max_frames: int) -> Frames:
    """Parse a GIF's blocks, up to max_frames frames. A truncated file has the frames found so far."""
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    at, count, pixels = 13 + _table(flags), 0, 0
    while at < len(data) and count <= max_frames:
        kind = data[at]
        if kind == 0x21:  # extension: label, sub-blocks
            at = _after_blocks(data, at + 2)
        elif kind == 0x2C and at + 10 <= len(data):  # image: 9 bytes, local table, code size, sub-blocks
            left, top, wide, high, local = struct.unpack_from("<HHHHB", data, at + 1)
            width, height = max(width, left + wide), max(height, top + high)
            count, pixels = count + 1, pixels + wide * high
            at = _after_blocks(data, at + 11 + _table(local))
        else:  # the trailer, or data that is not a GIF
            break
    count = max(count, 1)
    return Frames(width, height, count, width * height * count, lossless=True)


def webp_frames(data: bytes, max_frames: int) -> Frames:
    """Parse a WebP's chunks. Raises EOFError for a truncated file, ValueError for one that is not a WebP."""
    if int.from_bytes(data[4:8], "little") + 8 > len(data):
        raise EOFError("truncated")
    at, width, height, count, lossless = 12, 0, 0, 0, False
    while at + 8 <= len(data) and count <= max_frames:
        kind, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + min(size, 16)]
        if kind == b"VP8X" and len(body) >= 10:
            width = 1 + int.from_bytes(body[4:7], "little")
            height = 1 + int.from_bytes(body[7:10], "little")
        elif kind == b"VP8 " and len(body) >= 10 and not width:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
        elif kind == b"VP8L" and len(body) >= 5:
            bits = int.from_bytes(body[1:5], "little")
            lossless = True
            if not width:
                width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        elif kind == b"ANMF":
            count += 1
            lossless = lossless or data[at + 24 : at + 28] == b"VP8L"
        at += 8 + size + (size & 1)
    if not width:
        raise ValueError("no image chunk")
    return Frames(width, height, max(count, 1), width * height * max(count, 1), lossless=lossless)


def _table(flags: int) -> int:
    """Return the size in bytes of the colour table that these flags declare."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0


def _after_blocks(data: bytes, at: int) -> int:
    """Return the position after a chain of sub-blocks: each a length byte and that many bytes, the last one empty."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1
