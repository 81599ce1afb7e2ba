"""Hooks for what Schemathesis cannot derive from the document. schemathesis.toml names this module.

Image media types get real images. Valid requests carry no value that depends on an earlier response or on the request's
own bytes: cursors, event ids, digests, future times. Invalid requests are sent as generated.
"""

from __future__ import annotations

import io
import uuid
from typing import Any, cast

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from pydantic import JsonValue

SIDE = 24  # maximum pixels: the service decodes every image
LATER_HEADERS = (
    "Content-Digest", "Repr-Digest", "If-Match", "If-None-Match", "If-Range", "Range", "Last-Event-ID", "Prefer",
    "Upload-Checksum", "Upload-Metadata", "Upload-Defer-Length",
)  # fmt: skip
LATER_FIELDS = ("cursor", "last_event_id", "expires_at", "since", "until", "sha256", "items", "files")
TUS = {
    "Tus-Resumable": "1.0.0",
    "Upload-Length": "100",
    "Upload-Offset": "0",
}  # numbers in text


def image(name: str, width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """Return an image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, name)
    return stream.getvalue()


def register() -> None:
    """Register generators for image media types."""
    side, shade = st.integers(1, SIDE), st.integers(0, 255)
    for name in ("jpeg", "png", "bmp", "tiff", "webp", "gif"):
        files = st.builds(image, st.just(name), side, side, st.tuples(shade, shade, shade))
        schemathesis.openapi.media_type(f"image/{name}", files)
    jpegs = st.builds(image, st.just("jpeg"), side, side, st.tuples(shade, shade, shade))
    schemathesis.openapi.media_type("application/octet-stream", jpegs)
    schemathesis.openapi.media_type("application/offset+octet-stream", st.binary(max_size=100))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Remove values from valid requests that depend on an earlier response."""
    if case.meta is None or not case.meta.generation.mode.is_positive:
        return
    for name in LATER_HEADERS:
        case.headers.pop(name, None)
    if "Idempotency-Key" in case.headers:
        case.headers["Idempotency-Key"] = f'"{uuid.uuid4()}"'  # a key belongs to one request
    if "Tus-Resumable" in case.headers:
        case.headers.update(TUS)
    for fields in (case.query, case.body):
        if isinstance(fields, dict):
            _remove_dependent(fields)
    if isinstance(case.query, dict):
        for name in ("metadata", "profile"):  # JSON objects as text
            case.query.pop(name, None)
    if isinstance(case.body, dict) and isinstance(files := case.body.get("file"), list):
        # The document's example is text; files are bytes.
        case.body["file"] = cast("JsonValue", [item.encode() if type(item) is str else item for item in files])
    case._sync_validated_hashes()  # the removed values do not make the request invalid


def _remove_dependent(fields: dict[str, Any]) -> None:
    for name in LATER_FIELDS:
        fields.pop(name, None)
    if not fields.get("agent"):
        fields.pop("letter_id", None)  # a letter id needs its agent
    if "stage" in fields and isinstance(profile := fields.get("profile"), dict):
        profile.pop("parameters", None)  # of a rerun: each stage has its own, which the document does not list
    if isinstance(fields.get("image_ids"), list):  # the service splits at commas, and accepts fifty
        fields["image_ids"] = [str(ids).split(",")[0] for ids in fields["image_ids"]]


register()
