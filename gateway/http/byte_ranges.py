"""Byte ranges (RFC 9110 section 14): a single range, else the whole representation."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.ASCII | re.IGNORECASE)


class OutOfRange(ValueError):
    """The requested range contains no byte of the representation."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """The bytes from `first` to `last`, both included, of `size` bytes."""

    first: int
    last: int
    size: int

    @property
    def length(self) -> int:
        """The number of bytes."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        """Return the value of Content-Range."""
        return f"bytes {self.first}-{self.last}/{self.size}"


def read_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range of a Range header, None for the whole. Raises OutOfRange.

    Other units, several ranges and invalid headers are ignored, as section 14.2 allows.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or found.group(1, 2) == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # suffix range
        if not int(last) or not size:
            raise OutOfRange
        return ByteRange(max(0, size - int(last)), size - 1, size)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise OutOfRange
    return ByteRange(int(first), min(int(last), size - 1) if last else size - 1, size)
