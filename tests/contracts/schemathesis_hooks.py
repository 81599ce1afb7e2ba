"""What Schemathesis cannot know from the document. Named in schemathesis.toml, loaded by command and test alike.

Files that are declared to be images are images. And a request that is meant to be valid carries nothing that only means
something after an earlier answer, or about the very bytes of this one: a cursor, an event's id, a digest, a time that
must lie ahead. Requests that are meant to be invalid are sent as they were made.
"""

from __future__ import annotations

import io
import uuid
from typing import Any, cast

import schemathesis
from hypothesis import strategies as st
from PIL import Image
from pydantic import JsonValue

SIDE = 24  # pixels at most: the service must decode every one
LATER_HEADERS = (
    "Content-Digest", "Repr-Digest", "If-Match", "If-None-Match", "If-Range", "Range", "Last-Event-ID", "Prefer",
    "Upload-Checksum", "Upload-Metadata", "Upload-Defer-Length",
)  # fmt: skip
LATER_FIELDS = ("cursor", "last_event_id", "expires_at", "since", "until", "sha256", "items", "files")
TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "100", "Upload-Offset": "0"}  # numbers, which OpenAPI has as text


def image(name: str, width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """Return an image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, name)
    return stream.getvalue()


def register() -> None:
    """Make what is declared to be an image an image."""
    side, shade = st.integers(1, SIDE), st.integers(0, 255)
    for name in ("jpeg", "png", "bmp", "tiff", "webp", "gif"):
        files = st.builds(image, st.just(name), side, side, st.tuples(shade, shade, shade))
        schemathesis.openapi.media_type(f"image/{name}", files)
    schemathesis.openapi.media_type("application/offset+octet-stream", st.binary(max_size=100))


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: schemathesis.Case[Any], kwargs: dict[str, Any]) -> None:
    """Leave out of a valid request what only an earlier answer could have given."""
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
            _leave_out(fields)
    if isinstance(case.query, dict):
        case.query.pop("metadata", None)  # a JSON object as text
    if isinstance(case.body, dict) and isinstance(files := case.body.get("file"), list):
        # The document's example, as bytes, which JSON's types do not have.
        case.body["file"] = cast("JsonValue", [item.encode() if type(item) is str else item for item in files])
    case._sync_validated_hashes()  # what was left out has made nothing invalid


def _leave_out(fields: dict[str, Any]) -> None:
    for name in LATER_FIELDS:
        fields.pop(name, None)
    if not fields.get("agent"):
        fields.pop("letter_id", None)  # which is one agent's
    if isinstance(fields.get("image_ids"), list):  # as many as there are commas, and fifty at most
        fields["image_ids"] = [str(ids).split(",")[0] for ids in fields["image_ids"]]


register()
