"""Run-length encoding of BMP: RLE8 and RLE4 (Microsoft, "Bitmap compression")."""

from __future__ import annotations

_END_OF_LINE, _END_OF_BITMAP, _DELTA = 0, 1, 2


def runs(data: memoryview, width: int, height: int, *, nibbles: bool) -> tuple[bytearray, bytearray | None]:
    """Return the palette indices in the file's order of lines, and 255 or 0 for each that was set or not.

    Instead of the latter None if every pixel was set. A line's surplus pixels are dropped. Raises EOFError if the data
    ends before its end code and before the last pixel, ValueError for a delta that leaves the image.
    """
    indices, written = bytearray(width * height), bytearray(width * height)
    at, x, y, end = 0, 0, 0, len(data)
    while y < height and (y < height - 1 or x < width):
        if at + 2 > end:
            raise EOFError("truncated")
        count, value = data[at], data[at + 1]
        at += 2
        if count:
            run = _encoded(value, count, nibbles=nibbles)
        elif value == _END_OF_LINE:
            x, y = 0, y + 1
            continue
        elif value == _END_OF_BITMAP:
            break
        elif value == _DELTA:
            if at + 2 > end:
                raise EOFError("truncated")
            x, y, at = x + data[at], y + data[at + 1], at + 2
            if x > width or y > height:
                raise ValueError("a delta leaves the image")
            continue
        else:
            size = (value + 1) // 2 if nibbles else value
            if at + size > end:
                raise EOFError("truncated")
            run = _literal(bytes(data[at : at + size]), value, nibbles=nibbles)
            at += size + (size & 1)  # padded to 16 bits
        shown = min(len(run), width - x)
        start = y * width + x
        indices[start : start + shown] = run[:shown]
        written[start : start + shown] = b"\xff" * shown
        x += shown
    return indices, written if 0 in written else None


def _encoded(value: int, count: int, *, nibbles: bool) -> bytes:
    """Return one index, or two that alternate, so many times."""
    if not nibbles:
        return bytes((value,)) * count
    return bytes((value >> 4, value & 15)) * (count // 2) + bytes((value >> 4,) * (count & 1))


def _literal(data: bytes, count: int, *, nibbles: bool) -> bytes:
    """Return so many indices as they lie in the data."""
    return bytes(nibble for byte in data for nibble in (byte >> 4, byte & 15))[:count] if nibbles else data
