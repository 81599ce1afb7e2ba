"""Byte ranges (RFC 9110 section 14): one range of an entity, else the whole of it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_RANGE = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.ASCII | re.IGNORECASE)


class OutOfRange(ValueError):
    """No byte of the entity is in the range that was asked for."""


@dataclass(frozen=True, slots=True)
class ByteRange:
    """From the first byte to the last, both included, of `size` bytes."""

    first: int
    last: int
    size: int

    @property
    def length(self) -> int:
        """How many bytes are in it."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        """Return it as Content-Range has it."""
        return f"bytes {self.first}-{self.last}/{self.size}"


def read_range(header: str | None, size: int) -> ByteRange | None:
    """Return the range a Range header asks for, None for the whole. Raises OutOfRange.

    Another unit, several ranges and what cannot be read are ignored, as section 14.2 lets a server do.
    """
    found = _RANGE.fullmatch(header or "")
    if found is None or found.group(1, 2) == ("", ""):
        return None
    first, last = found.groups()
    if not first:  # the last so many bytes
        if not int(last) or not size:
            raise OutOfRange
        return ByteRange(max(0, size - int(last)), size - 1, size)
    if last and int(last) < int(first):
        return None
    if int(first) >= size:
        raise OutOfRange
    return ByteRange(int(first), min(int(last), size - 1) if last else size - 1, size)
