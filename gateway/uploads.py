"""Uploads: a multipart body read as a stream; the file goes to disk while it is hashed and counted.

At no time is more than a write buffer of the file in memory. What is too large is cut off at the byte that is one
too many, also when the client did not say how much it would send. The file is gone when the request is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from gateway.problems import Problem, away
from gateway.settings import GatewaySettings
from schemas.formats import MEDIA_TYPES, SNIFF_BYTES, sniff
from schemas.http_api import ProblemCode, ProblemItem

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

log = logging.getLogger(__name__)

_BUFFER = 1 << 20  # bytes gathered before one write and hash in a thread
_FORM_OVERHEAD = 64 * 1024  # bytes a form may have beside its file: metadata, part headers, boundaries
_CLOSE = {"Connection": "close"}  # the rest of the body is not read


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One uploaded file, whole, on disk until the request ends."""

    path: Path
    size: int  # bytes
    sha256: str
    format: str
    filename: str | None

    @property
    def content_type(self) -> str:
        """The media type by the file's own bytes."""
        return MEDIA_TYPES[self.format]


@dataclass(frozen=True, slots=True)
class Form:
    """A multipart form with exactly one file."""

    file: SpooledFile
    fields: dict[str, str]


@asynccontextmanager
async def receive_form(
    request: Request, settings: GatewaySettings, *, allowed: frozenset[str], max_bytes: int
) -> AsyncIterator[Form]:
    """Receive a form of one `file` and the allowed text fields. Raises Problem; the file is gone on exit."""
    boundary = _boundary(request)
    _refuse_by_length(request, max_bytes)
    try:
        folder = tempfile.TemporaryDirectory(prefix="darkroom-upload-", dir=settings.spool_dir)
    except OSError as error:
        raise _no_room(error, settings) from error
    with folder as name:
        path = Path(name) / "original"
        with _spool(path, settings) as spool:
            reader = _FormReader(
                spool, allowed=allowed, max_bytes=max_bytes, max_field_bytes=settings.max_metadata_bytes
            )
            await _read_body(request, settings, boundary, reader)
        yield reader.form(path)


def _spool(path: Path, settings: GatewaySettings) -> IO[bytes]:
    try:
        return path.open("wb", buffering=0)
    except OSError as error:
        raise _no_room(error, settings) from error


def _boundary(request: Request) -> bytes:
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data":
        raise Problem(ProblemCode.UNSUPPORTED_MEDIA_TYPE, "Send the file as multipart/form-data.", headers=_CLOSE)
    if not boundary:
        raise Problem(ProblemCode.BAD_REQUEST, "The Content-Type header names no boundary.", headers=_CLOSE)
    return boundary


def _refuse_by_length(request: Request, max_bytes: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > max_bytes + _FORM_OVERHEAD:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> Problem:
    return Problem(ProblemCode.FILE_TOO_LARGE, f"A file may have {max_bytes} bytes at most.", headers=_CLOSE)


def _no_room(error: OSError, settings: GatewaySettings) -> Problem:
    log.error("uploads cannot wait on disk", extra={"error": repr(error)})
    return away("The gateway's own disk", retry_after_s=settings.retry_after_s)


async def _read_body(request: Request, settings: GatewaySettings, boundary: bytes, reader: _FormReader) -> None:
    body = aiter(request.stream())
    received = 0
    try:
        parser = MultipartParser(boundary, reader.callbacks())
        async with asyncio.timeout(settings.upload_total_s):
            while True:
                try:
                    async with asyncio.timeout(settings.upload_idle_s):
                        chunk = await anext(body)
                except StopAsyncIteration:
                    break
                received += len(chunk)  # also counts what surrounds the parts
                if received > reader.max_bytes + _FORM_OVERHEAD:
                    raise _too_large(reader.max_bytes)
                parser.write(chunk)
                await reader.settle()
        parser.finalize()
        await reader.settle(last=True)
    except TimeoutError:
        detail = f"No byte for {settings.upload_idle_s:g} s, or not whole after {settings.upload_total_s:g} s."
        raise Problem(ProblemCode.UPLOAD_TOO_SLOW, detail, headers=_CLOSE) from None
    except FormParserError:
        raise Problem(ProblemCode.BAD_REQUEST, "The body is not a whole multipart form.", headers=_CLOSE) from None
    except ClientDisconnect:
        raise Problem(ProblemCode.BAD_REQUEST, "The connection ended before the upload did.", headers=_CLOSE) from None
    except OSError as error:
        raise _no_room(error, settings) from error


@dataclass(slots=True)
class _Part:
    name: str | None = None
    filename: str | None = None
    is_file: bool = False
    text: bytearray = field(default_factory=bytearray)


class _FormReader:
    """Takes the parser's callbacks. They run on the loop and only gather; `settle` writes and hashes in a thread."""

    def __init__(self, spool: IO[bytes], *, allowed: frozenset[str], max_bytes: int, max_field_bytes: int) -> None:
        self._spool = spool
        self._allowed = allowed
        self.max_bytes = max_bytes
        self._max_field_bytes = max_field_bytes
        self._part = _Part()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._fields: dict[str, str] = {}
        self._filename: str | None = None
        self._has_file = False
        self._ended = False
        self._gathered = bytearray()
        self._head = b""
        self._format: str | None = None
        self._size = 0
        self._hash = hashlib.sha256()

    def callbacks(self) -> MultipartCallbacks:
        """Return what MultipartParser calls."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    async def settle(self, *, last: bool = False) -> None:
        """Write what was gathered, when it is worth it or the form has ended."""
        if len(self._gathered) >= _BUFFER or (last and self._gathered):
            data, self._gathered = self._gathered, bytearray()
            await asyncio.to_thread(self._write, data)

    def form(self, path: Path) -> Form:
        """Return the whole form. Raises Problem when it has not exactly one file, with something in it."""
        if not self._ended:
            raise Problem(ProblemCode.BAD_REQUEST, "The form ends before its last boundary.")
        if not self._has_file:
            raise Problem(ProblemCode.MISSING_FILE, "Send the image as the form field `file`, with a file name.")
        if not self._size:
            raise Problem(ProblemCode.EMPTY_FILE, "The file has no bytes.")
        known = self._format or self._sniff()
        return Form(SpooledFile(path, self._size, self._hash.hexdigest(), known, self._filename), self._fields)

    def _write(self, data: bytearray) -> None:
        self._hash.update(data)
        view = memoryview(data)
        while view:
            view = view[self._spool.write(view) :]

    def _begin_part(self) -> None:
        self._part = _Part()

    def _end_header(self) -> None:
        name, value = bytes(self._header[0]).lower(), bytes(self._header[1])
        self._header = (bytearray(), bytearray())
        if name != b"content-disposition":
            return
        _, options = parse_options_header(value)
        if b"name" in options:
            self._part.name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            self._part.filename = clean_filename(options[b"filename"].decode("utf-8", "replace"))
            self._part.is_file = True

    def _begin_data(self) -> None:
        part = self._part
        if part.name is None:
            raise Problem(ProblemCode.BAD_REQUEST, "A part of the form has no name.", headers=_CLOSE)
        if part.name == "file":
            if not part.is_file:
                raise Problem(ProblemCode.MISSING_FILE, "The field `file` must have a file name.", headers=_CLOSE)
            if self._has_file:
                raise Problem(ProblemCode.BAD_REQUEST, "Send one file per request.", headers=_CLOSE)
            self._has_file, self._filename = True, part.filename
        elif part.name not in self._allowed:
            shown = part.name[:80]
            known = ", ".join(sorted({"file", *self._allowed}))
            item = ProblemItem(field=shown, detail=f"not one of: {known}")
            raise Problem(ProblemCode.UNKNOWN_FIELD, f"`{shown}` is not one of: {known}.", (item,), headers=_CLOSE)
        elif part.name in self._fields:
            raise Problem(ProblemCode.BAD_REQUEST, f"The field `{part.name}` comes twice.", headers=_CLOSE)

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.name != "file":
            self._part.text.extend(data[start:end])
            if len(self._part.text) > self._max_field_bytes:
                code = ProblemCode.INVALID_METADATA if self._part.name == "metadata" else ProblemCode.BAD_REQUEST
                detail = f"The field `{self._part.name}` may have {self._max_field_bytes} bytes at most."
                raise Problem(code, detail, headers=_CLOSE)
            return
        self._size += end - start
        if self._size > self.max_bytes:
            raise _too_large(self.max_bytes)
        self._gathered.extend(memoryview(data)[start:end])
        if self._format is None:
            self._head += data[start : min(end, start + SNIFF_BYTES - len(self._head))]
            if len(self._head) >= SNIFF_BYTES:
                self._format = self._sniff()

    def _sniff(self) -> str:
        known = sniff(self._head)
        if known is None:
            detail = f"By its first bytes the file is none of: {', '.join(MEDIA_TYPES)}."
            raise Problem(ProblemCode.UNSUPPORTED_FORMAT, detail, headers=_CLOSE)
        return known

    def _end_part(self) -> None:
        if self._part.name is not None and self._part.name != "file":
            try:
                self._fields[self._part.name] = self._part.text.decode()
            except UnicodeDecodeError:
                detail = f"The field `{self._part.name}` is not UTF-8."
                raise Problem(ProblemCode.BAD_REQUEST, detail, headers=_CLOSE) from None

    def _end(self) -> None:
        self._ended = True


def clean_filename(name: str) -> str | None:
    """Return the last part of a client's file name without control characters: shown to people, never opened."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    with contextlib.suppress(ValueError):
        last = last.encode("utf-8", "ignore").decode()
    return "".join(letter for letter in last if letter.isprintable())[:255] or None
