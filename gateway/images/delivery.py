"""Delivery of the bytes of one size of an image, through the gateway or by a presigned link to the object store.

The ETag is the content's hash, and a URL that contains the hash may be cached forever. Browsers may display only the
content types of an allow list; anything else is sent as a download.
"""

from __future__ import annotations

import base64
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import format_datetime, parsedate_to_datetime
from pathlib import PurePath
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette import types

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.byte_ranges import ByteRange, OutOfRange, read_range
from gateway.http.etags import CONDITIONAL, names
from gateway.http.problems import Problem, documented
from gateway.images.lookup import Lookup
from gateway.images.views import VERSION_DIGITS
from gateway.settings import Delivered, GatewaySettings
from schemas.formats import IMAGE_TYPES, MEDIA_TYPES
from schemas.http.problems import ProblemCode
from schemas.values import RENDITION_SIDES, Rendition
from streams.concurrency.timeouts import bounded
from streams.object_store.keys import image_prefix, is_below
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.read_model.records import ImageRecord

log = logging.getLogger(__name__)

Size = Annotated[str, Query(description=f"one of {', '.join(RENDITION_SIDES)}", max_length=64)]

SHOWN = IMAGE_TYPES  # content types sent unchanged; SVG and PDF are not among them
_EXTENSIONS = {kind: name for name, kind in MEDIA_TYPES.items()}
_UNKNOWN = "application/octet-stream"
SAFETY = {
    "Content-Security-Policy": "default-src 'none'; sandbox",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
}
_IMMUTABLE, _REVALIDATE = "private, max-age=31536000, immutable", "private, no-cache"
_PLAIN = {"schema": {"type": "string"}}
_RANGE = {"description": "the range and the total size (RFC 9110)", **_PLAIN}


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery endpoint."""

    settings: GatewaySettings
    files: FileStore
    lookup: Lookup

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes("/api/v1/images", tags=["query"])
        problems = documented(
            ProblemCode.NOT_FOUND,
            ProblemCode.NO_SUCH_SIZE,
            ProblemCode.NOT_FINISHED,
            ProblemCode.GONE,
            ProblemCode.RANGE_NOT_SATISFIABLE,
            ProblemCode.DEPENDENCY_UNAVAILABLE,
        )
        bytes_of = {"content": {"image/webp": {"schema": {"type": "string", "format": "binary"}}}}
        routes.add_api_route(
            "/{image_id}/direct",
            self.direct,
            dependencies=[requires(Scope.READ)],
            summary="Get the bytes of one size",
            response_class=StreamingResponse,
            responses={
                200: {**bytes_of, "description": "the image", "headers": _HEADERS},
                206: {
                    **bytes_of,
                    "description": "a range of the image",
                    "headers": {**_HEADERS, "Content-Range": _RANGE},
                },
                304: {"description": "unchanged"},
                307: {"description": "a temporary link to the object store", "headers": {"Location": _PLAIN}},
                **problems,
            },
            openapi_extra={"parameters": [*_RANGE_PARAMETERS, *CONDITIONAL["parameters"]]},
        )
        return routes

    async def direct(
        self,
        image_id: str,
        request: Request,
        owner: Caller,
        size: Size = "medium",
        v: Annotated[
            str | None, Query(description="content version, as in the URLs of responses", max_length=64)
        ] = None,
        download: Annotated[bool, Query(description="send as an attachment")] = False,
    ) -> Response:
        """Send the bytes, or a range of them. A URL with the current `v` may be cached forever. With presigned
        delivery (a server setting) the response is a redirect to a short-lived link.
        """
        record = await self.lookup.image(image_id, owner)
        rendition = self.lookup.rendition(record, size)
        if not is_below(image_prefix(record.image_id), rendition.object.key):
            # A record written before events were checked may name any object of the bucket.
            log.warning("rendition is not a file of its image", extra={"image_id": image_id})
            raise _no_bytes()
        content = _Content.of(record, rendition, named=v, download=download)
        if _is_known(request, content):
            return Response(status_code=304, headers=content.headers)
        link = await self._link(content)
        if link is not None:
            age = self.settings.link_expires_s // 2  # a cached redirect must not outlive its link
            headers = {**SAFETY, "Location": link, "Cache-Control": f"private, max-age={age}"}
            return Response(status_code=307, headers=headers)
        return await self._stream(image_id, content, _range_of(request, content))

    async def _link(self, content: _Content) -> str | None:
        """Return a presigned link, None if the gateway delivers the bytes or the store has no links."""
        if self.settings.delivery is not Delivered.PRESIGNED or content.content_type == _UNKNOWN:
            return None
        link = self.files.presign_get(
            content.key, expires_s=self.settings.link_expires_s, filename=content.filename, inline=not content.download
        )
        return await bounded(link, self.settings.storage_timeout_s)

    async def _stream(self, image_id: str, content: _Content, part: ByteRange | None) -> Response:
        timeout_s = self.settings.storage_timeout_s
        start, length = (part.first, part.length) if part is not None else (0, None)
        chunks = aiter(self.files.stream(content.key, start=start, length=length))
        try:
            first = await bounded(anext(chunks, b""), timeout_s)
        except ObjectMissing:
            log.warning("rendition is missing", extra={"image_id": image_id, "key": content.key})
            raise _no_bytes() from None
        headers = {**content.headers, "Content-Length": str(part.length if part is not None else content.size)}
        if part is not None:
            headers["Content-Range"] = str(part)
        return _Stream(
            _all_chunks(first, chunks, timeout_s),
            chunks,
            status_code=200 if part is None else 206,
            media_type=content.content_type,
            headers=headers,
        )


class _Stream(StreamingResponse):
    """A streamed object; its file or connection is closed also if the client disconnects or sends HEAD."""

    def __init__(self, content: AsyncIterator[bytes], source: AsyncIterator[bytes], **arguments: Any) -> None:
        super().__init__(content, **arguments)
        self._source = source

    async def __call__(self, scope: types.Scope, receive: types.Receive, send: types.Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            if isinstance(self._source, AsyncGenerator):
                await self._source.aclose()


@dataclass(frozen=True, slots=True)
class _Content:
    """One size of an image with its response headers."""

    key: str
    size: int  # bytes
    content_type: str
    filename: str
    download: bool
    modified: datetime | None
    headers: dict[str, str]

    @classmethod
    def of(cls, record: ImageRecord, rendition: Rendition, *, named: str | None, download: bool) -> _Content:
        stored = rendition.object
        content_type = stored.content_type if stored.content_type in SHOWN else _UNKNOWN
        download = download or content_type == _UNKNOWN
        filename = filename_of(record, _EXTENSIONS.get(content_type, "bin"))
        modified = _modified(record)
        headers = {
            **SAFETY,
            "ETag": f'"{stored.sha256}"',
            "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(stored.sha256)).decode()}:",
            "Accept-Ranges": "bytes",
            "Content-Disposition": disposition(filename, download=download),
            "Cache-Control": _IMMUTABLE if named == stored.sha256[:VERSION_DIGITS] else _REVALIDATE,
        }
        if modified is not None:
            headers["Last-Modified"] = format_datetime(modified, usegmt=True)
        return cls(stored.key, stored.size, content_type, filename, download, modified, headers)


def _no_bytes() -> Problem:
    return Problem(ProblemCode.NOT_FOUND, "The bytes of this size no longer exist.")


def disposition(filename: str, *, download: bool) -> str:
    """Return a Content-Disposition (RFC 6266) with an ASCII fallback and the full name (RFC 8187)."""
    kind = "attachment" if download else "inline"
    plain = "".join(letter if " " <= letter <= "~" and letter not in '"\\%' else "_" for letter in filename)
    named = f'{kind}; filename="{plain}"'
    return named if plain == filename else f"{named}; filename*=UTF-8''{quote(filename, safe='')}"


def filename_of(record: ImageRecord, extension: str) -> str:
    """Return the original's name with another extension; without one, the image's id."""
    return f"{PurePath(record.filename or '').stem.strip('. ') or record.image_id}.{extension}"


def _modified(record: ImageRecord) -> datetime | None:
    """Return when the resizer finished, to the second, None if unknown."""
    stage = record.stages.get("resizer")
    try:
        made = datetime.fromisoformat((stage and stage.finished_at) or "")
        return (made if made.tzinfo is not None else made.replace(tzinfo=UTC)).astimezone(UTC).replace(microsecond=0)
    except (ValueError, OverflowError):  # written by another service in an unknown format
        return None


def _is_known(request: Request, content: _Content) -> bool:
    """Return whether the client has the bytes (RFC 9110 section 13.2.2): by ETag, else by date."""
    tags = request.headers.get("if-none-match")
    if tags is not None:
        return names(tags, content.headers["ETag"])
    since = request.headers.get("if-modified-since")
    if since is None or content.modified is None:
        return False
    try:
        return content.modified <= parsedate_to_datetime(since)
    except (ValueError, TypeError, OverflowError):  # no date, or one without a zone
        return False


def _range_of(request: Request, content: _Content) -> ByteRange | None:
    """Return the range to send, None for all bytes, also when If-Range is not the ETag. Raises Problem (416)."""
    condition = request.headers.get("if-range")
    if condition is not None and condition.strip() != content.headers["ETag"]:
        return None
    try:
        return read_range(request.headers.get("range"), content.size)
    except OutOfRange:
        headers = {"Content-Range": f"bytes */{content.size}", "Accept-Ranges": "bytes"}
        detail = f"The range is outside the {content.size} bytes of this size."
        raise Problem(ProblemCode.RANGE_NOT_SATISFIABLE, detail, headers=headers) from None


async def _all_chunks(first: bytes, rest: AsyncIterator[bytes], timeout_s: float) -> AsyncIterator[bytes]:
    yield first
    while chunk := await bounded(anext(rest, b""), timeout_s):
        yield chunk


_HEADERS: dict[str, Any] = {
    "ETag": {"description": "SHA-256 of the bytes", **_PLAIN},
    "Accept-Ranges": _PLAIN,
    "Cache-Control": _PLAIN,
    "Content-Disposition": {"description": "the original's name, with the extension of the delivered type", **_PLAIN},
    "Repr-Digest": {"description": "SHA-256 of the bytes (RFC 9530)", **_PLAIN},
    "Last-Modified": _PLAIN,
}
_RANGE_PARAMETERS = [
    {
        "name": name,
        "in": "header",
        "required": False,
        "description": description,
        "schema": {"type": "string"},
        "example": example,
    }
    for name, description, example in (
        ("Range", "one range of bytes; several ranges return all bytes", "bytes=0-1023"),
        ("If-Range", "return the range only if this is the current ETag, else all bytes", '"9f86d081884c7d65"'),
    )
]
