"""AVIF under any major brand: what counts is that `avif` or `avis` is among its brands.

AV1 Image File Format, section 6; libavif asks for no more. Pillow opens four major brands only.
"""

from __future__ import annotations

_OPENED = {b"avif", b"avis", b"mif1", b"msf1"}


def with_known_brand(data: bytes) -> bytes:
    """Return an AVIF with a major brand that Pillow opens: its own, or mif1, which has no meaning for libavif."""
    return data if data[8:12] in _OPENED else data[:8] + b"mif1" + data[12:]
