"""Resumable uploads: the tus 1.0.0 endpoints, https://tus.io/protocols/resumable-upload.

The image is accepted before the request with the last byte is answered. If that answer is lost or the gateway crashes
before it, the next HEAD completes the upload: an offset equal to the length is reported only for an accepted image.
"""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request, Response

from gateway.access.dependencies import Caller, Who
from gateway.http.problems import Problem
from gateway.http.request_context import base_url
from gateway.http.spool_space import SPACE
from gateway.http.spooling import clean_filename, spool_folder
from gateway.limits.rate_limits import UPLOADS, Limits
from gateway.settings import GatewaySettings
from gateway.upload_sessions.chunks import CLOSE, Body, Piece
from gateway.upload_sessions.completion import Completion, sniff_format
from gateway.upload_sessions.leases import Lease, Leases
from gateway.upload_sessions.store import EndedUpload, UploadKind, UploadRecord, Uploads
from gateway.upload_sessions.tus_headers import (
    ALGORITHMS,
    EXTENSIONS,
    VERSION,
    Checksum,
    check_length,
    check_media_type,
    check_version,
    expiry,
    is_part,
    read_checksum,
    read_count,
    read_length,
    read_metadata_header,
    read_offset,
)
from gateway.upload_sessions.views import job_url, upload_url, view_of
from gateway.uploads.submission_fields import read_details
from schemas.formats import SNIFF_BYTES
from schemas.http.problems import ProblemCode
from schemas.http.resumable import UploadView
from schemas.values import Owner


@dataclass(frozen=True, slots=True)
class Tus:
    """The tus endpoints."""

    settings: GatewaySettings
    uploads: Uploads
    completion: Completion
    limits: Limits
    leases: Leases

    async def options(self) -> Response:
        """Return the supported tus version, extensions, checksum algorithms and maximum size."""
        return Response(
            status_code=204,
            headers={
                "Tus-Version": VERSION,
                "Tus-Extension": EXTENSIONS,
                "Tus-Max-Size": str(self.settings.max_upload_bytes),
                "Tus-Checksum-Algorithm": ALGORITHMS,
            },
        )

    async def create(self, request: Request, identity: Who) -> Response:
        """Create an upload; the body may contain its first bytes."""
        check_version(request)
        size = read_length(request, self.settings.max_upload_bytes)
        metadata = read_metadata_header(request, self.settings.max_metadata_bytes)
        details = read_details(metadata, max_metadata_bytes=self.settings.max_metadata_bytes)
        checksum = read_checksum(request)
        if not is_part(request) and _has_body(request):
            check_media_type(request)
        await self.limits.take(request, identity, UPLOADS)
        record = self.uploads.new(
            identity.owner,
            UploadKind.RESUMABLE,
            size=size,
            told=request.headers.get("upload-metadata"),
            filename=clean_filename(metadata.get("filename") or metadata.get("name") or ""),
            details=details,
        )
        await self.uploads.begin(record)
        headers = {"Location": upload_url(base_url(request, self.settings), record.upload_id)}
        if is_part(request):
            try:
                async with self.leases.acquire(record.upload_id) as lease:
                    headers = {**await self._append(request, record, 0, checksum, lease), **headers}
            except Problem as problem:
                problem.headers = {**problem.headers, **headers}
                raise
        return Response(status_code=201, headers={**expiry(record), **headers})

    async def head(self, request: Request, upload_id: str, owner: Caller) -> Response:
        """Return the upload's offset. When all bytes have been received, the image is accepted first."""
        check_version(request)
        async with self.leases.acquire(upload_id):
            found = await self._find(owner, upload_id)
            if isinstance(found, EndedUpload):
                return Response(headers=self._ended(request, found))
            offset = await self.uploads.offset(found)
            if offset == found.size:
                return Response(headers=await self._finish(request, found))
        headers = {"Upload-Offset": str(offset), **expiry(found)}
        headers |= {"Upload-Defer-Length": "1"} if found.size is None else {"Upload-Length": str(found.size)}
        headers |= {"Upload-Metadata": found.told} if found.told else {}
        return Response(headers=headers)

    async def append(self, request: Request, upload_id: str, owner: Caller) -> Response:
        """Append bytes at the upload's offset. With the last byte the image is accepted."""
        check_version(request)
        check_media_type(request)
        offset, checksum = read_offset(request), read_checksum(request)
        async with self.leases.acquire(upload_id) as lease:
            found = await self._find(owner, upload_id)
            if isinstance(found, EndedUpload):
                self._check_offset(offset, found.size)
                if _has_body(request):
                    raise Problem(ProblemCode.FILE_TOO_LARGE, "The upload already has all its bytes.", headers=CLOSE)
                return Response(status_code=204, headers=self._ended(request, found))
            self._check_offset(offset, await self.uploads.offset(found))
            found = await self._with_length(request, found, offset)
            return Response(status_code=204, headers=await self._append(request, found, offset, checksum, lease))

    async def delete(self, request: Request, upload_id: str, owner: Caller) -> Response:
        """Abort an upload and remove its bytes. An accepted image is kept."""
        check_version(request)
        async with self.leases.acquire(upload_id):
            found = await self.uploads.find(owner, upload_id)
            if isinstance(found, EndedUpload):
                await self.uploads.forget(found)
            else:
                await self.uploads.remove(found)
        return Response(status_code=204)

    async def overridden(self, request: Request, upload_id: str, owner: Caller) -> Response:
        """Dispatch by X-HTTP-Method-Override: some networks block PATCH and DELETE."""
        method = request.headers.get("x-http-method-override", "").upper()
        handlers = {"HEAD": self.head, "PATCH": self.append, "DELETE": self.delete}
        if method not in handlers:
            detail = f"POST to an upload requires X-HTTP-Method-Override with one of: {', '.join(handlers)}."
            allow = {"Allow": "DELETE, GET, HEAD, OPTIONS, PATCH", **CLOSE}
            raise Problem(ProblemCode.METHOD_NOT_ALLOWED, detail, headers=allow)
        return await handlers[method](request, upload_id, owner)

    async def show(self, request: Request, upload_id: str, owner: Caller) -> UploadView:
        """Return an upload's state, offset and result. Changes nothing."""
        found = await self.uploads.find(owner, upload_id)
        offset = None
        if isinstance(found, UploadRecord) and found.kind is UploadKind.RESUMABLE:
            offset = await self.uploads.offset(found)
        return view_of(found, base_url(request, self.settings), offset=offset)

    async def _find(self, owner: Owner, upload_id: str) -> UploadRecord | EndedUpload:
        """Return a resumable upload. Raises Problem (404), or the stored problem of a rejected upload."""
        found = await self.uploads.find(owner, upload_id)
        if found.kind is not UploadKind.RESUMABLE:
            raise Problem(ProblemCode.NOT_FOUND, "No resumable upload has this id.")
        if isinstance(found, EndedUpload) and found.refusal is not None:
            raise Problem(found.refusal.code, found.refusal.detail, headers=CLOSE)
        return found

    def _check_offset(self, requested: int, offset: int) -> None:
        if requested != offset:
            raise Problem(
                ProblemCode.OFFSET_MISMATCH,
                f"Upload-Offset differs from the upload's offset. Continue at byte {offset}.",
                headers={"Upload-Offset": str(offset), **CLOSE},
            )

    async def _with_length(self, request: Request, record: UploadRecord, offset: int) -> UploadRecord:
        """Store the Upload-Length of an upload created with Upload-Defer-Length."""
        length = read_count(request, "upload-length")
        if length is None or length == record.size:
            return record
        if record.size is not None:
            detail = "Upload-Length differs from the length declared earlier."
            raise Problem(ProblemCode.BAD_REQUEST, detail, headers=CLOSE)
        if length < offset:
            detail = f"Upload-Length is less than the {offset} bytes received."
            raise Problem(ProblemCode.BAD_REQUEST, detail, headers=CLOSE)
        record = record.model_copy(update={"size": check_length(length, self.settings.max_upload_bytes)})
        await self.uploads.save(record)
        return record

    async def _append(
        self, request: Request, record: UploadRecord, offset: int, checksum: Checksum | None, lease: Lease
    ) -> dict[str, str]:
        """Store the body; return the response headers."""
        most = (self.settings.max_upload_bytes if record.size is None else record.size) - offset
        if (announced := read_count(request, "content-length")) is not None and announced > most:
            detail = f"The body is larger than the {most} bytes that the file still lacks."
            raise Problem(ProblemCode.FILE_TOO_LARGE, detail, headers=CLOSE)
        with spool_folder(self.settings) as folder:
            body = Body(request, self.settings, lease, folder, most, checksum.digest if checksum else None)
            unverified: list[Piece] = []
            async for piece in body.pieces():
                if checksum is None:
                    offset = await self._store(record, offset, piece)
                else:
                    unverified.append(piece)  # stored only when the checksum of the whole body matches
            if checksum is not None and body.problem is None and not checksum.matches():
                body.problem = Problem(
                    ProblemCode.CHECKSUM_MISMATCH, "The body does not match Upload-Checksum. Send it again."
                )
            if body.problem is None:
                for piece in unverified:
                    offset = await self._store(record, offset, piece)
        if body.problem is not None:
            body.problem.headers = {**body.problem.headers, "Upload-Offset": str(offset), **expiry(record)}
            raise body.problem
        if offset == record.size:
            return await self._finish(request, record)
        return {"Upload-Offset": str(offset), **expiry(record)}

    async def _store(self, record: UploadRecord, offset: int, piece: Piece) -> int:
        """Store a piece; return the new offset. Rejects a file that is no image with its first piece."""
        if offset == 0 and (piece.size >= SNIFF_BYTES or piece.size == record.size):
            try:
                sniff_format(piece.head(SNIFF_BYTES))
            except Problem as problem:
                await self.uploads.end(record, 0, why=problem)
                problem.headers = CLOSE
                raise
        await self.uploads.add(record, offset, piece.path)
        SPACE.remove(piece.path)
        return offset + piece.size

    async def _finish(self, request: Request, record: UploadRecord) -> dict[str, str]:
        ended = await self.completion.finish(request, record, lambda: self.uploads.content(record))
        if ended.refusal is not None:
            raise Problem(ended.refusal.code, ended.refusal.detail)
        return self._ended(request, ended)

    def _ended(self, request: Request, ended: EndedUpload) -> dict[str, str]:
        """Return the response headers for an upload whose image has been accepted."""
        status_url = job_url(base_url(request, self.settings), ended.job_id or "")
        return {
            "Upload-Offset": str(ended.size),
            "Upload-Length": str(ended.size),
            "Darkroom-Job": ended.job_id or "",
            "Link": f'<{status_url}>; rel="status"',
            **expiry(ended),
        }


def _has_body(request: Request) -> bool:
    return request.headers.get("content-length", "0") != "0" or "transfer-encoding" in request.headers
