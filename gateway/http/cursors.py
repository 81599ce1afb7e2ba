"""Cursors: the position of the next page of a listing. Opaque to clients, and valid for that listing only.

A cursor contains the last image of a page and a digest of the listing's filters, so that a truncated or changed
cursor, or one of another listing, is refused. It is not secret: a forged one still lists only the caller's own images.
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
    """Return the cursor of the page after an image."""
    place = uuid.UUID(image_id).bytes
    return base64.urlsafe_b64encode(place + _digest(place, listing)).decode().rstrip("=")


def place_of(cursor: str, listing: Mapping[str, object]) -> str:
    """Return the id of the image that the page follows. Raises ValueError: invalid, or of another listing."""
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
    text = json.dumps(listing, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(place + text.encode()).digest()[:_DIGEST_BYTES]
