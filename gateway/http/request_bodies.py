"""Request bodies read as a stream: a multipart form or one file, spooled to disk (gateway.http.spooling).

A body over the limit is cut off at the first byte too many, also without a Content-Length. The files are removed when
the request ends.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from gateway.http.digests import DigestCheck, declared_digests
from gateway.http.multipart import FormReader, Rules
from gateway.http.problems import Problem
from gateway.http.spooling import BUFFER, CLOSE, Arriving, SpooledFile, clean_filename, room, spool_folder, too_large
from gateway.settings import GatewaySettings
from schemas.http.problems import ProblemCode

SHA256_FIELD = "sha256"
"""The form field with the expected SHA-256 of the file, where it is allowed."""

_SHA256 = re.compile(r"^[0-9a-fA-F]{64}$")


FILENAME_FIELD = "filename"
"""The query parameter with the name of a file that is the whole body."""

_BYTES = b"application/octet-stream"


@dataclass(frozen=True, slots=True)
class Form:
    """One file and the text fields sent with it."""

    file: SpooledFile
    fields: dict[str, str]


@dataclass(frozen=True, slots=True)
class Files:
    """A multipart form with one file or more, each of which may be invalid."""

    files: tuple[Arriving, ...]
    fields: dict[str, str]


@asynccontextmanager
async def receive_form(
    request: Request, settings: GatewaySettings, *, allowed: frozenset[str], max_bytes: int
) -> AsyncIterator[Form]:
    """Receive a form of one `file` and the allowed text fields; the file is removed on exit. Raises Problem."""
    rules = Rules(allowed, max_bytes, max(settings.max_metadata_bytes, 64))
    async with receive_files(request, settings, rules) as found:
        yield Form(found.files[0].ready(_declared_sha256(found.fields)), found.fields)


@asynccontextmanager
async def receive_image(
    request: Request, settings: GatewaySettings, *, allowed: frozenset[str], max_bytes: int
) -> AsyncIterator[Form]:
    """Receive a form (see `receive_form`), or a body that is the file itself, with its fields in the query.

    Fields of a form take precedence over those in the query. The file is removed on exit. Raises Problem.
    """
    fields = _query_fields(request)
    kind, _ = media_boundary(request)
    if kind == b"multipart/form-data":
        async with receive_form(request, settings, allowed=allowed, max_bytes=max_bytes) as form:
            yield Form(form.file, fields | form.fields)
    elif kind.startswith(b"image/") or kind == _BYTES:
        name = clean_filename(fields.get(FILENAME_FIELD, ""))
        async with receive_file(request, settings, max_bytes=max_bytes, filename=name) as file:
            yield Form(file.ready(_declared_sha256(fields)), fields)
    else:
        detail = "Send the file as multipart/form-data, or its bytes as image/* or application/octet-stream."
        raise Problem(ProblemCode.UNSUPPORTED_MEDIA_TYPE, detail, headers=CLOSE)


@asynccontextmanager
async def receive_files(request: Request, settings: GatewaySettings, rules: Rules) -> AsyncIterator[Files]:
    """Receive a form by its rules; the files are removed on exit. Raises Problem."""
    boundary = _boundary(request)
    _check_length(request, rules.body, rules.total)
    check = declared_digests(request)
    with spool_folder(settings) as folder:
        reader = FormReader(folder, rules)
        try:
            parser = MultipartParser(boundary, reader.callbacks())

            async def take(chunk: bytes) -> None:
                parser.write(chunk)
                await reader.settle()

            await _read_body(request, settings, take, check, longest=rules.body, limit=rules.total)
            with room(settings):
                parser.finalize()
                await reader.settle(last=True)
        except FormParserError:
            raise Problem(
                ProblemCode.BAD_REQUEST, "The body is not a complete multipart form.", headers=CLOSE
            ) from None
        finally:
            reader.close()
        files = reader.finished()
        check.check("the body")
        yield Files(files, reader.fields)


@asynccontextmanager
async def receive_archive(request: Request, settings: GatewaySettings, *, max_bytes: int) -> AsyncIterator[Arriving]:
    """Receive a body that is a zip archive; it is removed on exit. Raises Problem."""
    async with receive_file(request, settings, max_bytes=max_bytes, max_archive_bytes=max_bytes) as file:
        yield file


@asynccontextmanager
async def receive_file(
    request: Request,
    settings: GatewaySettings,
    *,
    max_bytes: int,
    max_archive_bytes: int = 0,
    filename: str | None = None,
) -> AsyncIterator[Arriving]:
    """Receive a body that is an image, or an archive if `max_archive_bytes` is set; removed on exit. Raises Problem."""
    _check_length(request, max_bytes, max_bytes)
    check = declared_digests(request)
    with spool_folder(settings) as folder:
        with room(settings):
            file = Arriving(
                folder / "body", filename, max_bytes=max_bytes, strict=True, max_archive_bytes=max_archive_bytes
            )

        async def take(chunk: bytes) -> None:
            file.take(chunk)
            if file.buffered >= BUFFER:
                await asyncio.to_thread(file.write)

        try:
            await _read_body(request, settings, take, check, longest=max_bytes, limit=max_bytes)
            with room(settings):
                await asyncio.to_thread(file.write)
        finally:
            file.close()
        check.check("the body")
        yield file


def media_boundary(request: Request) -> tuple[bytes, bytes | None]:
    """Return the media type and the boundary of a body."""
    kind, options = parse_options_header(request.headers.get("content-type", ""))
    return kind, options.get(b"boundary")


def _boundary(request: Request) -> bytes:
    kind, boundary = media_boundary(request)
    if kind != b"multipart/form-data":
        raise Problem(ProblemCode.UNSUPPORTED_MEDIA_TYPE, "Send the file as multipart/form-data.", headers=CLOSE)
    if not boundary:
        raise Problem(ProblemCode.BAD_REQUEST, "The Content-Type header has no boundary.", headers=CLOSE)
    return boundary


def _check_length(request: Request, longest: int, limit: int) -> None:
    length = request.headers.get("content-length", "")
    if length.isascii() and length.isdigit() and int(length) > longest:
        raise too_large(limit)


def _query_fields(request: Request) -> dict[str, str]:
    """Return the parameters of the query. Raises Problem for a repeated one."""
    fields: dict[str, str] = {}
    for name, value in request.query_params.multi_items():
        if name in fields:
            raise Problem(ProblemCode.BAD_REQUEST, f"The parameter `{name[:80]}` is repeated.", headers=CLOSE)
        fields[name] = value
    return fields


def _declared_sha256(fields: dict[str, str]) -> str | None:
    text = fields.get(SHA256_FIELD)
    if text is None:
        return None
    if not _SHA256.match(text):
        raise Problem(ProblemCode.INVALID_DIGEST, "The field `sha256` must have 64 hexadecimal digits.")
    return text.lower()


async def _read_body(
    request: Request,
    settings: GatewaySettings,
    take: Callable[[bytes], Awaitable[None]],
    check: DigestCheck,
    *,
    longest: int,
    limit: int,  # that an error names
) -> None:
    body = aiter(request.stream())
    received = 0
    try:
        async with asyncio.timeout(settings.upload_total_s):
            while True:
                try:
                    async with asyncio.timeout(settings.upload_idle_s):
                        chunk = await anext(body)
                except StopAsyncIteration:
                    break
                received += len(chunk)  # with boundaries and part headers
                if received > longest:
                    raise too_large(limit)
                if check:
                    await asyncio.to_thread(check.update, chunk)
                with room(settings):
                    await take(chunk)
    except TimeoutError:
        detail = f"No data for {settings.upload_idle_s:g} s, or incomplete after {settings.upload_total_s:g} s."
        raise Problem(ProblemCode.UPLOAD_TOO_SLOW, detail, headers=CLOSE) from None
    except ClientDisconnect:
        raise Problem(
            ProblemCode.BAD_REQUEST, "The connection closed before the upload was complete.", headers=CLOSE
        ) from None
