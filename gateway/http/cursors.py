"""Cursors: where a listing goes on. Opaque to clients, and good for the listing that gave it alone.

A cursor holds the last image of a page and a digest of what was listed, so that one that was cut, changed or taken to
another listing is refused. It holds nothing secret: whoever makes one up sees no more than their own images.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import uuid
from collections.abc import Mapping

_DIGEST_BYTES = 12


def cursor_after(image_id: str, listing: Mapping[str, object]) -> str:
    """Return the cursor that goes on behind an image."""
    place = uuid.UUID(image_id).bytes
    return base64.urlsafe_b64encode(place + _digest(place, listing)).decode().rstrip("=")


def place_of(cursor: str, listing: Mapping[str, object]) -> str:
    """Return the id of the image a listing goes on behind. Raises ValueError for what is no cursor of it."""
    try:
        raw = base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("not a cursor") from None
    place, digest = raw[:16], raw[16:]
    if (
        len(place) < 16
        or digest != _digest(place, listing)
        or cursor_after(str(uuid.UUID(bytes=place)), listing) != cursor
    ):
        raise ValueError("not a cursor of this listing")
    return str(uuid.UUID(bytes=place))


def _digest(place: bytes, listing: Mapping[str, object]) -> bytes:
    said = json.dumps(listing, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(place + said.encode()).digest()[:_DIGEST_BYTES]
