"""JPEG without an end marker: accepted if every scan line is in the file.

JPEG: ITU-T T.81, sections B.1 (markers), F.1.2 (sequential) and G.1 (progressive). libjpeg fills what is missing
without a report, so the entropy-coded data is continued in several ways: if the pixels are the same, none is missing.
"""

from __future__ import annotations

import io
import re

from PIL import Image

_SOI, _EOI, _SOS = 0xD8, 0xD9, 0xDA
_FRAMES = {0xC0, 0xC1, 0xC2}  # Huffman: baseline, extended, progressive
_MARKER = re.compile(rb"\xff+[\x01-\xcf\xd8-\xfe]")  # none of stuffing (FF00), restart markers (FFD0 to FFD7), fill
_BAND = 256  # rows compared at a time
# Two may agree by chance, where both leave the range of a pixel.
_FILLINGS = (b"\x55" * 64, b"\xaa" * 64, bytes((place * 73 + 151) % 255 for place in range(64)))


def without_end(data: bytes) -> Image.Image | None:
    """Return the loaded image of a JPEG that lacks only its end marker, None if more is missing."""
    scan = _last_scan(data)
    if scan is None:
        return None
    body = data.rstrip(b"\xff")  # half of the end marker; an FF of the data is followed by 00
    return _complete(body, scan)


def _last_scan(data: bytes) -> int | None:
    """Return where the last scan's data begins if the file ends within it and all coefficients were announced."""
    at, missing = 2, None
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return None
        if data[at + 1] == 0xFF:  # fill
            at += 1
            continue
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        segment = data[at + 4 : at + 2 + length]
        at += 2 + length
        if marker in {_SOI, _EOI} or len(segment) != length - 2:
            return None
        if marker in _FRAMES:
            missing = _coefficients(segment, progressive=marker == 0xC2)
        elif marker == _SOS:
            if missing is None:
                return None
            missing -= _announced(segment)
            following = _MARKER.search(data, at)
            if following is None:
                return None if missing else at
            at = following.end() - 2
    return None


def _coefficients(frame: bytes, *, progressive: bool) -> set[tuple[int, int]]:
    """Return what the scans must bring to full precision: (component, coefficient in zigzag order)."""
    components = frame[6 : 6 + 3 * frame[5] : 3]
    return {(component, place) for component in components for place in range(64 if progressive else 1)}


def _announced(scan: bytes) -> set[tuple[int, int]]:
    """Return the coefficients that a scan brings to full precision."""
    count = scan[0]
    first, last, precision = scan[1 + 2 * count : 4 + 2 * count]
    if precision & 15:
        return set()
    return {(component, place) for component in scan[1 : 1 + 2 * count : 2] for place in range(first, last + 1)}


def _complete(data: bytes, scan: int) -> Image.Image | None:
    """Return the image if its pixels do not depend on what follows the data."""
    first = _loaded(data + _continued(data, scan, _FILLINGS[0]))
    for filling in _FILLINGS[1:]:
        if not _same(first, _loaded(data + _continued(data, scan, filling))):
            return None
    return first


def _same(one: Image.Image, other: Image.Image) -> bool:
    boxes = ((0, top, one.width, min(top + _BAND, one.height)) for top in range(0, one.height, _BAND))
    return all(one.crop(box).tobytes() == other.crop(box).tobytes() for box in boxes)


def _continued(data: bytes, scan: int, filling: bytes) -> bytes:
    """Return the filling, again behind each of the eight next restart markers, and an end marker."""
    last = max(data.rfind(bytes([0xFF, marker]), scan) for marker in range(0xD0, 0xD8))
    following = data[last + 1] - 0xD0 + 1 if last >= 0 else 0
    markers = (number % 8 for number in range(following, following + 8))
    return filling + b"".join(bytes([0xFF, 0xD0 + number]) + filling for number in markers) + b"\xff\xd9"


def _loaded(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("JPEG",))
    image.load()
    return image
