"""Direct uploads: the client sends the file to the object store, with a form presigned for one object.

The store enforces the form's size and type; completion checks the file like any other upload, then copies the object
and removes it. Writing the object again afterwards has no effect.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request, Response

from gateway.access.dependencies import Caller, Who
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.json_bodies import described, read_json
from gateway.http.problems import Problem, documented
from gateway.http.request_context import base_url
from gateway.http.spooling import clean_filename
from gateway.images.user_metadata import check_metadata
from gateway.limits.rate_limits import UPLOADS, Limits
from gateway.settings import GatewaySettings
from gateway.upload_sessions.completion import Completion
from gateway.upload_sessions.leases import Leases
from gateway.upload_sessions.store import EndedUpload, UploadKind, UploadRecord, Uploads, in_seconds
from gateway.upload_sessions.views import job_of, job_url, upload_url
from gateway.uploads.submission_fields import Details, OnDuplicate
from schemas.formats import MEDIA_TYPES
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.http.resumable import DirectUpload, DirectUploadForm
from schemas.http.submissions import Submitted
from schemas.values import Owner
from streams.concurrency.timeouts import bounded
from streams.object_store.keys import staged_key
from streams.object_store.protocol import ObjectMissing

_PREFIX = "/api/v1/uploads/direct"


@dataclass(frozen=True, slots=True)
class Direct:
    """The endpoints of direct uploads."""

    settings: GatewaySettings
    uploads: Uploads
    completion: Completion
    limits: Limits
    leases: Leases

    def routes(self) -> Routes:
        """Return the routes."""
        routes = Routes(_PREFIX, tags=["ingest"])
        unavailable, none = ProblemCode.DEPENDENCY_UNAVAILABLE, ProblemCode.NOT_FOUND
        routes.add_api_route(
            "",
            self.begin,
            methods=["POST"],
            status_code=201,
            dependencies=[requires(Scope.WRITE)],
            summary="Get a form to upload a file to the object store",
            openapi_extra=described(DirectUpload),
            responses=documented(
                ProblemCode.INVALID_FIELD,
                ProblemCode.INVALID_METADATA,
                ProblemCode.FILE_TOO_LARGE,
                ProblemCode.UNSUPPORTED_FORMAT,
                ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                ProblemCode.DIRECT_UPLOAD_UNAVAILABLE,
                ProblemCode.TOO_MANY_UPLOADS,
                ProblemCode.RATE_LIMITED,
                ProblemCode.QUOTA_EXCEEDED,
                unavailable,
            ),
        )
        routes.add_api_route(
            "/{upload_id}/complete",
            self.complete,
            methods=["POST"],
            status_code=202,
            dependencies=[requires(Scope.WRITE)],
            summary="Complete a direct upload",
            responses=documented(
                none,
                ProblemCode.NOT_ARRIVED,
                ProblemCode.UPLOAD_EXPIRED,
                ProblemCode.FILE_TOO_LARGE,
                ProblemCode.UNSUPPORTED_FORMAT,
                ProblemCode.DIGEST_MISMATCH,
                ProblemCode.UPLOAD_BUSY,
                ProblemCode.QUOTA_EXCEEDED,
                unavailable,
            ),
        )
        routes.add_api_route(
            "/{upload_id}",
            self.delete,
            methods=["DELETE"],
            status_code=204,
            dependencies=[requires(Scope.WRITE)],
            summary="Abort a direct upload",
            responses=documented(none, ProblemCode.UPLOAD_EXPIRED, ProblemCode.UPLOAD_BUSY, unavailable),
        )
        return routes

    async def begin(self, request: Request, response: Response, identity: Who) -> DirectUploadForm:
        """Return a form for one file of the given type and, if declared, size. `complete` accepts the file.

        An object store in a directory has no forms (`direct-upload-unavailable`): send the file to
        `POST /api/v1/images/upload`, or in parts to `/api/v1/uploads`.
        """
        asked = await read_json(request, DirectUpload, self.settings)
        most = self._most(asked)
        record = self.uploads.new(
            identity.owner,
            UploadKind.DIRECT,
            size=asked.size,
            sha256=asked.sha256,
            filename=clean_filename(asked.filename or ""),
            details=self._details(asked),
        )
        form = await bounded(
            self.uploads.files.presign_post(
                staged_key(record.owner, record.upload_id),
                content_type=asked.content_type,
                min_bytes=asked.size or 1,
                max_bytes=most,
                expires_s=self._form_s,
            ),
            self.settings.storage_timeout_s,
        )
        if form is None:
            detail = (
                "The object store has no direct uploads. "
                "Send the file to POST /api/v1/images/upload, or in parts to /api/v1/uploads."
            )
            raise Problem(ProblemCode.DIRECT_UPLOAD_UNAVAILABLE, detail)
        await self.limits.take(request, identity, UPLOADS)
        await self.uploads.begin(record)
        base = base_url(request, self.settings)
        status_url = upload_url(base, record.upload_id)
        response.headers["Location"] = status_url
        return DirectUploadForm(
            upload_id=record.upload_id,
            url=form.url,
            fields=dict(form.fields),
            max_bytes=most,
            expires_at=in_seconds(self._form_s),
            complete_url=f"{base}{_PREFIX}/{record.upload_id}/complete",
            status_url=status_url,
        )

    async def complete(self, request: Request, response: Response, upload_id: str, owner: Caller) -> Submitted:
        """Check the file and publish its event; 202 after Kafka's confirmation. Idempotent.

        An unsupported file ends the upload; a file not yet in the store, or a 503, does not.
        """
        async with self.leases.acquire(upload_id):
            found = await self._find(owner, upload_id)
            if isinstance(found, UploadRecord):
                await self._check_arrived(found)
                record = found
                found = await self.completion.finish(request, record, lambda: self._content(record))
        if found.refusal is not None:
            raise Problem(found.refusal.code, found.refusal.detail)
        base = base_url(request, self.settings)
        response.headers["Location"] = job_url(base, found.job_id or "")
        response.headers["Retry-After"] = str(self.settings.poll_after_s)
        return job_of(found, base)

    async def delete(self, upload_id: str, owner: Caller) -> Response:
        """Abort an upload and remove its file. An accepted image is kept."""
        async with self.leases.acquire(upload_id):
            found = await self._find(owner, upload_id)
            if isinstance(found, UploadRecord):
                await self.uploads.remove(found)
            else:
                await self.uploads.forget(found)
        return Response(status_code=204)

    @property
    def _form_s(self) -> int:
        return min(self.settings.direct_form_s, int(self.settings.upload_expires_s))

    def _most(self, asked: DirectUpload) -> int:
        most = self.settings.max_upload_bytes
        if asked.content_type not in MEDIA_TYPES.values():
            detail = f"not one of: {', '.join(MEDIA_TYPES.values())}"
            raise Problem(
                ProblemCode.UNSUPPORTED_FORMAT,
                f"content_type: {detail}",
                (ProblemItem(field="content_type", detail=detail),),
            )
        if asked.size is not None and asked.size > most:
            raise Problem(ProblemCode.FILE_TOO_LARGE, f"The file is larger than the limit of {most} bytes.")
        return asked.size or most

    def _details(self, asked: DirectUpload) -> Details:
        return Details(
            bucket=asked.bucket,
            context=check_metadata(asked.metadata, max_bytes=self.settings.max_metadata_bytes),
            tags=asked.tags,
            category=asked.category,
            lane=asked.lane,
            on_duplicate=OnDuplicate(asked.on_duplicate),
            profile=asked.profile.as_profile(),
        )

    async def _find(self, owner: Owner, upload_id: str) -> UploadRecord | EndedUpload:
        found = await self.uploads.find(owner, upload_id)
        if found.kind is not UploadKind.DIRECT:
            raise Problem(ProblemCode.NOT_FOUND, "No direct upload has this id.")
        return found

    async def _check_arrived(self, record: UploadRecord) -> None:
        """Raise Problem unless the store has the file, with the declared size."""
        arrived = await self.uploads.files.stat(staged_key(record.owner, record.upload_id))
        if arrived is None:
            raise _not_arrived()
        most = record.size or self.settings.max_upload_bytes
        if arrived.size > most:
            raise Problem(ProblemCode.FILE_TOO_LARGE, f"The file is larger than the limit of {most} bytes.")
        if arrived.size == 0 or (record.size is not None and arrived.size != record.size):
            raise Problem(ProblemCode.DIGEST_MISMATCH, "The file's size differs from the declared size.")

    async def _content(self, record: UploadRecord) -> AsyncIterator[bytes]:
        left = record.size or self.settings.max_upload_bytes
        try:
            async for chunk in self.uploads.files.stream(staged_key(record.owner, record.upload_id), length=left):
                yield chunk
        except ObjectMissing:
            raise _not_arrived() from None


def _not_arrived() -> Problem:
    return Problem(ProblemCode.NOT_ARRIVED, "The object store does not have the file. Send it with the form first.")
