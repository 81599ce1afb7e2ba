"""Positions in the feed's topics, and the cursors that encode them for clients.

Positions are one offset per partition of each topic, in a fixed order, so that those of different readers compare. A
cursor is opaque to clients: base64url of a version, the number of partitions per topic, and the offsets as LEB128.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Sequence

VERSION = 1
MAX_CURSOR = 8192  # characters
MAX_PARTITIONS = 1024  # of one topic
_BITS = 63  # Kafka's offsets are signed 64-bit

Positions = tuple[int, ...]


class BadCursor(ValueError):
    """Not a valid cursor."""


def latest(one: Positions, other: Positions) -> Positions:
    """Return the higher offset of two positions, by partition."""
    return tuple(map(max, one, other))


def cursor_of(shape: Sequence[int], positions: Positions) -> str:
    """Return the cursor of positions. `shape`: number of partitions per topic."""
    raw = bytearray([VERSION, len(shape)])
    for number in (*shape, *positions):
        _put(raw, number)
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def read_cursor(cursor: str) -> tuple[tuple[int, ...], Positions]:
    """Return the shape and the positions of a cursor. Raises BadCursor."""
    if not cursor.isascii() or len(cursor) > MAX_CURSOR:
        raise BadCursor("not a cursor")
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except binascii.Error:
        raise BadCursor("not a cursor") from None
    if len(raw) < 2 or raw[0] != VERSION:
        raise BadCursor("not a cursor of this version")
    numbers = _numbers(raw[2:])
    shape, positions = tuple(numbers[: raw[1]]), tuple(numbers[raw[1] :])
    if len(shape) != raw[1] or any(count > MAX_PARTITIONS for count in shape) or len(positions) != sum(shape):
        raise BadCursor("not a cursor")
    return shape, positions


def _put(raw: bytearray, number: int) -> None:
    while number > 0x7F:
        raw.append(number & 0x7F | 0x80)
        number >>= 7
    raw.append(number)


def _numbers(raw: Iterable[int]) -> list[int]:
    found, number, shift = [], 0, 0
    for byte in raw:
        number |= (byte & 0x7F) << shift
        shift += 7
        if shift > _BITS + 7 or number >> _BITS:
            raise BadCursor("not a cursor")
        if not byte & 0x80:
            found.append(number)
            number, shift = 0, 0
    if shift:
        raise BadCursor("not a cursor")
    return found
