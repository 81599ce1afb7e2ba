"""The headers of tus 1.0.0, https://tus.io/protocols/resumable-upload: read strictly, written once."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import format_datetime

from fastapi import Request

from gateway.http.problems import Problem
from gateway.upload_sessions.chunks import CLOSE, Hash
from gateway.upload_sessions.store import EndedUpload, UploadRecord, expires
from gateway.uploads.submission_fields import FIELDS
from schemas.http.problems import ProblemCode, ProblemItem

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-defer-length,creation-with-upload,expiration,checksum,termination"
MEDIA_TYPE = "application/offset+octet-stream"
OURS = {"Tus-Resumable": VERSION}
# SHA-1 is what clients of the protocol send. It guards against accidents of transport; the image's id is a SHA-256.
_ALGORITHMS: Mapping[str, Callable[[], Hash]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
}
ALGORITHMS = ",".join(_ALGORITHMS)
_SAID_BY_CLIENTS = frozenset({"filename", "name", "filetype", "type", "contentType", "relativePath"})
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Checksum:
    """What a request says its body is."""

    digest: Hash
    expected: bytes

    def matches(self) -> bool:
        """Say whether the body was that."""
        return self.digest.digest() == self.expected


def check_version(request: Request) -> None:
    """Refuse any version of the protocol but ours, as it demands: 412, and nothing else is looked at."""
    if request.headers.get("tus-resumable") != VERSION:
        detail = f"Send the header Tus-Resumable: {VERSION}."
        raise Problem(ProblemCode.UNSUPPORTED_TUS_VERSION, detail, headers={"Tus-Version": VERSION, **CLOSE})


def check_media_type(request: Request) -> None:
    """Refuse a body that is not said to be a part of an upload."""
    if not is_part(request):
        raise Problem(ProblemCode.UNSUPPORTED_MEDIA_TYPE, f"Send the bytes as {MEDIA_TYPE}.", headers=CLOSE)


def is_part(request: Request) -> bool:
    """Say whether the body is a part of an upload."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == MEDIA_TYPE


def read_length(request: Request, most: int) -> int | None:
    """Return the size of the file a client begins to send, None when it will say later."""
    if "upload-concat" in request.headers:
        raise _wrong("Upload-Concat", "Parts of one file are sent one after the other here.")
    deferred = request.headers.get("upload-defer-length")
    length = read_count(request, "upload-length")
    if (deferred is None) == (length is None):
        raise _wrong("Upload-Length", "Say Upload-Length, or Upload-Defer-Length: 1, and not both.")
    if deferred is not None and deferred != "1":
        raise _wrong("Upload-Defer-Length", "It is 1 or not there.")
    return None if length is None else check_length(length, most)


def check_length(length: int, most: int) -> int:
    """Return the size of a file. Raises Problem when it has no bytes or too many."""
    if length == 0:
        raise Problem(ProblemCode.EMPTY_FILE, "The file has no bytes.", headers=CLOSE)
    if length > most:
        raise Problem(ProblemCode.FILE_TOO_LARGE, f"A file may have {most} bytes at most.", headers=CLOSE)
    return length


def read_offset(request: Request) -> int:
    """Return where a client goes on."""
    offset = read_count(request, "upload-offset")
    if offset is None:
        raise _wrong("Upload-Offset", "Say where the bytes belong.")
    return offset


def read_count(request: Request, name: str) -> int | None:
    """Return a header that is a number of bytes, None when it is not there."""
    text = request.headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise _wrong(name.title(), "It must be a number of bytes.")
    return int(text)


def read_checksum(request: Request) -> Checksum | None:
    """Return what a request says its body is, None when it does not say."""
    text = request.headers.get("upload-checksum")
    if text is None:
        return None
    name, _, value = text.partition(" ")
    if name not in _ALGORITHMS:
        raise Problem(ProblemCode.INVALID_DIGEST, f"Upload-Checksum is known with: {ALGORITHMS}.", headers=CLOSE)
    digest = _ALGORITHMS[name]()
    try:
        expected = base64.b64decode(value, validate=True)
    except ValueError:
        expected = b""
    if len(expected) != digest.digest_size:
        raise Problem(ProblemCode.INVALID_DIGEST, f"The checksum is no {name} in Base64.", headers=CLOSE)
    return Checksum(digest, expected)


def read_metadata_header(request: Request, most: int) -> dict[str, str]:
    """Return what Upload-Metadata says. Raises Problem for what is not text, comes twice, or that nobody reads."""
    text = request.headers.get("upload-metadata", "").strip()
    if len(text) > 2 * most:  # Base64 takes a third more, and there are names
        raise Problem(ProblemCode.INVALID_METADATA, f"The metadata may have {most} bytes at most.", headers=CLOSE)
    found: dict[str, str] = {}
    for pair in filter(None, text.split(",")) if text else ():
        name, _, value = pair.strip().partition(" ")
        if not name or name in found:
            raise _wrong("Upload-Metadata", "Each name is there once, with its value in Base64 behind a space.")
        try:
            found[name] = base64.b64decode(value.strip(), validate=True).decode()
        except ValueError:
            raise _wrong("Upload-Metadata", f"The value of `{name[:80]}` is not UTF-8 in Base64.") from None
    if unknown := sorted(found.keys() - FIELDS - _SAID_BY_CLIENTS):
        known = ", ".join(sorted({"filename", *FIELDS}))
        items = tuple(ProblemItem(field=name[:80], detail=f"not one of: {known}") for name in unknown[:20])
        detail = f"`{items[0].field}` in Upload-Metadata is not one of: {known}."
        raise Problem(ProblemCode.UNKNOWN_FIELD, detail, items, headers=CLOSE)
    return found


def expiry(record: UploadRecord | EndedUpload) -> dict[str, str]:
    """Return the header that says until when an upload can go on."""
    return {"Upload-Expires": format_datetime(expires(record), usegmt=True)}


def _wrong(name: str, detail: str) -> Problem:
    item = ProblemItem(field=name, detail=detail)
    return Problem(ProblemCode.BAD_REQUEST, f"{name}: {detail}", (item,), headers=CLOSE)
