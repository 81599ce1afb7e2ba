"""Parsing and validation of tus 1.0.0 headers, https://tus.io/protocols/resumable-upload."""

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
VERSION_HEADER = {"Tus-Resumable": VERSION}
# tus clients send SHA-1. It detects transport errors only; originals are identified by SHA-256.
_ALGORITHMS: Mapping[str, Callable[[], Hash]] = {
    "sha1": lambda: hashlib.sha1(usedforsecurity=False),
    "sha256": hashlib.sha256,
}
ALGORITHMS = ",".join(_ALGORITHMS)
_READ = FIELDS | {"filename", "name"}  # names in Upload-Metadata; clients send the file's as either
_MAX_DIGITS = 18


@dataclass(frozen=True, slots=True)
class Checksum:
    """The checksum a request declares for its body, and the running digest of the body."""

    digest: Hash
    expected: bytes

    def matches(self) -> bool:
        """Return whether the body has the declared checksum."""
        return self.digest.digest() == self.expected


def check_version(request: Request) -> None:
    """Raise Problem (412) for an unsupported protocol version, before any other check, as the protocol requires."""
    if request.headers.get("tus-resumable") != VERSION:
        detail = f"Send the header Tus-Resumable: {VERSION}."
        raise Problem(ProblemCode.UNSUPPORTED_TUS_VERSION, detail, headers={"Tus-Version": VERSION, **CLOSE})


def check_media_type(request: Request) -> None:
    """Raise Problem (415) unless the Content-Type is that of a tus upload."""
    if not is_part(request):
        raise Problem(ProblemCode.UNSUPPORTED_MEDIA_TYPE, f"The Content-Type must be {MEDIA_TYPE}.", headers=CLOSE)


def is_part(request: Request) -> bool:
    """Return whether the body is a part of an upload, by its Content-Type."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower() == MEDIA_TYPE


def read_length(request: Request, most: int) -> int | None:
    """Return the declared size of a new upload in bytes, None when it is deferred. Raises Problem (400, 413)."""
    if "upload-concat" in request.headers:
        raise _invalid_header("Upload-Concat", "Concatenation is not supported. Send the parts one after the other.")
    deferred = request.headers.get("upload-defer-length")
    length = read_count(request, "upload-length")
    if (deferred is None) == (length is None):
        raise _invalid_header("Upload-Length", "Send either Upload-Length or Upload-Defer-Length: 1.")
    if deferred is not None and deferred != "1":
        raise _invalid_header("Upload-Defer-Length", "The only allowed value is 1.")
    return None if length is None else check_length(length, most)


def check_length(length: int, most: int) -> int:
    """Return the size of a file in bytes. Raises Problem when it is 0 or above `most`."""
    if length == 0:
        raise Problem(ProblemCode.EMPTY_FILE, "The file is empty.", headers=CLOSE)
    if length > most:
        raise Problem(ProblemCode.FILE_TOO_LARGE, f"The file is larger than the limit of {most} bytes.", headers=CLOSE)
    return length


def read_offset(request: Request) -> int:
    """Return Upload-Offset in bytes. Raises Problem (400) when it is missing or not a number."""
    offset = read_count(request, "upload-offset")
    if offset is None:
        raise _invalid_header("Upload-Offset", "The header is required: the offset of the body in the file, in bytes.")
    return offset


def read_count(request: Request, name: str) -> int | None:
    """Return a header whose value is a number of bytes, None when it is absent. Raises Problem (400)."""
    text = request.headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS):
        raise _invalid_header(name.title(), "The value must be a whole number of bytes.")
    return int(text)


def read_checksum(request: Request) -> Checksum | None:
    """Return the checksum a request declares for its body, None without one. Raises Problem (400)."""
    text = request.headers.get("upload-checksum")
    if text is None:
        return None
    name, _, value = text.partition(" ")
    if name not in _ALGORITHMS:
        raise Problem(ProblemCode.INVALID_DIGEST, f"Upload-Checksum must use one of: {ALGORITHMS}.", headers=CLOSE)
    digest = _ALGORITHMS[name]()
    try:
        expected = base64.b64decode(value, validate=True)
    except ValueError:
        expected = b""
    if len(expected) != digest.digest_size:
        raise Problem(ProblemCode.INVALID_DIGEST, f"The checksum is not a {name} digest in Base64.", headers=CLOSE)
    return Checksum(digest, expected)


def read_metadata_header(request: Request, most: int) -> dict[str, str]:
    """Return Upload-Metadata as names and text values. Raises Problem for repeated names, and known ones without text.

    Other names are ignored, whatever their value: clients send what they have, such as `mtime` or `relativePath`.
    """
    text = request.headers.get("upload-metadata", "").strip()
    if len(text) > 2 * most:  # room for Base64 (4/3) and the names
        detail = f"The metadata is larger than the limit of {most} bytes."
        raise Problem(ProblemCode.INVALID_METADATA, detail, headers=CLOSE)
    found: dict[str, str] = {}
    seen: set[str] = set()
    for pair in filter(None, text.split(",")) if text else ():
        name, _, value = pair.strip().partition(" ")
        if not name or name in seen:
            detail = "Each name may appear once, followed by a space and its value in Base64."
            raise _invalid_header("Upload-Metadata", detail)
        seen.add(name)
        if name not in _READ:
            continue
        try:
            found[name] = base64.b64decode(value.strip(), validate=True).decode()
        except ValueError:
            raise _invalid_header("Upload-Metadata", f"The value of `{name[:80]}` is not UTF-8 in Base64.") from None
    return found


def expiry(record: UploadRecord | EndedUpload) -> dict[str, str]:
    """Return the Upload-Expires header of an upload."""
    return {"Upload-Expires": format_datetime(expires(record), usegmt=True)}


def _invalid_header(name: str, detail: str) -> Problem:
    item = ProblemItem(field=name, detail=detail)
    return Problem(ProblemCode.BAD_REQUEST, f"{name}: {detail}", (item,), headers=CLOSE)
