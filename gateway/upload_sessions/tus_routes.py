"""The routes of uploads that take more than one request, and how OpenAPI describes the tus protocol."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from gateway.http.problems import Problem, documented, unavailable
from gateway.limits.rate_limits import Limits
from gateway.openapi.examples import JOB_ID
from gateway.settings import GatewaySettings
from gateway.upload_sessions.completion import Completion
from gateway.upload_sessions.direct import Direct
from gateway.upload_sessions.leases import Leases
from gateway.upload_sessions.store import Uploads
from gateway.upload_sessions.tus import Tus
from gateway.upload_sessions.tus_headers import ALGORITHMS, MEDIA_TYPE, OURS, VERSION
from gateway.uploads.submission import Submission
from schemas.http.problems import ProblemCode
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore

_ROOT = "/api/v1/uploads"
_ONE = f"{_ROOT}/{{upload_id}}"


def _header(name: str, description: str, example: str, *, required: bool = False) -> dict[str, Any]:
    schema = {"type": "string"}
    return {
        "in": "header",
        "name": name,
        "required": required,
        "schema": schema,
        "description": description,
        "example": example,
    }


_TUS = _header("Tus-Resumable", "the protocol's version", VERSION, required=True)
_CHECKSUM = _header(
    "Upload-Checksum", f"algorithm ({ALGORITHMS}) and digest in Base64", "sha1 Kq5sNclPz7QV2+lfQIuc6R7oRu0="
)
_BODY = {MEDIA_TYPE: {"schema": {"type": "string", "format": "binary"}}}
_PARAMETERS: dict[str, Any] = {"parameters": [_TUS]}
_CREATION: dict[str, Any] = {
    "parameters": [
        _TUS,
        _header("Upload-Length", "bytes of the whole file", "123456"),
        _header("Upload-Defer-Length", "1: the length is said later", "1"),
        _header(
            "Upload-Metadata",
            "filename and the fields of an upload's form, each with its value in Base64",
            "filename Y2F0LmpwZw==,tags Y2F0",
        ),
        _CHECKSUM,
    ],
    "requestBody": {"required": False, "content": _BODY},
}
_PART: dict[str, Any] = {
    "parameters": [_TUS, _header("Upload-Offset", "where the bytes belong", "0", required=True), _CHECKSUM],
    "requestBody": {"required": True, "content": _BODY},
}


def _answered(status: int, description: str, *names: str) -> dict[int | str, dict[str, Any]]:
    """Describe an answer whose word is its headers."""
    headers = {
        name: {"description": _SAID[name][0], "schema": {"type": "string"}, "example": _SAID[name][1]}
        for name in ("Tus-Resumable", *names)
    }
    return {status: {"description": description, "headers": headers}}


_SAID = {
    "Tus-Resumable": ("the protocol's version", VERSION),
    "Upload-Offset": ("how many bytes have come", "70000"),
    "Upload-Length": ("bytes of the whole file", "123456"),
    "Upload-Defer-Length": ("1: the length is not known yet", "1"),
    "Upload-Metadata": ("as it was sent", "filename Y2F0LmpwZw=="),
    "Upload-Expires": ("until then the upload can go on", "Sun, 22 Nov 2026 18:30:00 GMT"),
    "Darkroom-Job": ("the job, once the image is accepted", JOB_ID),
    "Link": (
        "rel=status: where the job stands",
        f'<https://images.example.org/api/v1/images/jobs/{JOB_ID}>; rel="status"',
    ),
}
_ENDED = ("Upload-Offset", "Upload-Expires", "Darkroom-Job", "Link")


def speaking_tus(retry_after_s: int) -> type[APIRoute]:
    """Return routes whose every answer, also a refusal, says which version of the protocol is spoken."""

    class TusRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_tus(request: Request) -> Response:
                try:
                    answer = await handle(request)
                except Problem as problem:
                    problem.headers = {**problem.headers, **OURS}
                    raise
                except (DependencyUnavailable, TimeoutError) as error:
                    refusal = unavailable("A part of the system", retry_after_s=retry_after_s)
                    refusal.headers = {**refusal.headers, **OURS}
                    raise refusal from error
                answer.headers.update(OURS)
                return answer

            return handle_tus

    return TusRoute


def tus_routes(tus: Tus) -> APIRouter:
    """Return the routes of resumable uploads."""
    router = APIRouter(tags=["ingest"], route_class=speaking_tus(tus.settings.retry_after_s))
    unavailable, version, media = (
        ProblemCode.DEPENDENCY_UNAVAILABLE,
        ProblemCode.UNSUPPORTED_TUS_VERSION,
        ProblemCode.UNSUPPORTED_MEDIA_TYPE,
    )
    gone = (ProblemCode.NOT_FOUND, ProblemCode.UPLOAD_EXPIRED, ProblemCode.UPLOAD_BUSY)
    bytes_come = (
        ProblemCode.BAD_REQUEST,
        ProblemCode.INVALID_DIGEST,
        ProblemCode.UPLOAD_TOO_SLOW,
        ProblemCode.FILE_TOO_LARGE,
        ProblemCode.UNSUPPORTED_FORMAT,
        ProblemCode.CHECKSUM_MISMATCH,
    )
    for path in (_ROOT, _ONE):
        router.add_api_route(path, tus.options, methods=["OPTIONS"], status_code=204, summary="What is spoken of tus")
    router.add_api_route(
        _ROOT,
        tus.create,
        methods=["POST"],
        status_code=201,
        response_class=Response,
        summary="Begin a resumable upload",
        openapi_extra=_CREATION,
        responses=_answered(201, "the upload has begun", *_ENDED)
        | documented(
            *bytes_come,
            ProblemCode.EMPTY_FILE,
            ProblemCode.INVALID_METADATA,
            ProblemCode.INVALID_BUCKET,
            ProblemCode.INVALID_FIELD,
            ProblemCode.UNKNOWN_FIELD,
            ProblemCode.TOO_MANY_UPLOADS,
            ProblemCode.RATE_LIMITED,
            ProblemCode.QUOTA_EXCEEDED,
            version,
            media,
            unavailable,
        ),
    )
    router.add_api_route(
        _ONE,
        tus.head,
        methods=["HEAD"],
        summary="How much of an upload has come",
        openapi_extra=_PARAMETERS,
        responses=_answered(
            200, "how much has come", *_ENDED, "Upload-Length", "Upload-Defer-Length", "Upload-Metadata"
        )
        | documented(*gone, ProblemCode.UNSUPPORTED_FORMAT, ProblemCode.QUOTA_EXCEEDED, version, unavailable),
    )
    router.add_api_route(
        _ONE,
        tus.append,
        methods=["PATCH"],
        status_code=204,
        summary="Go on with an upload",
        openapi_extra=_PART,
        responses=_answered(204, "the bytes are kept; after the last one the image is accepted", *_ENDED)
        | documented(
            *gone, *bytes_come, ProblemCode.OFFSET_MISMATCH, ProblemCode.QUOTA_EXCEEDED, version, media, unavailable
        ),
    )
    router.add_api_route(
        _ONE,
        tus.delete,
        methods=["DELETE"],
        status_code=204,
        summary="Give a resumable upload up",
        openapi_extra=_PARAMETERS,
        responses=_answered(204, "nothing is left of it") | documented(*gone, version, unavailable),
    )
    router.add_api_route(_ONE, tus.overridden, methods=["POST"], include_in_schema=False)
    router.add_api_route(
        _ONE,
        tus.show,
        methods=["GET"],
        summary="Where an upload stands, and what became of it",
        route_class_override=APIRoute,
        responses=documented(ProblemCode.NOT_FOUND, ProblemCode.UPLOAD_EXPIRED, unavailable),
    )
    return router


def tus_and_direct_routes(
    settings: GatewaySettings, files: FileStore, submitting: Submission, limits: Limits
) -> APIRouter:
    """Return the routes of all uploads that take more than one request."""
    uploads = Uploads(settings, files, submitting.accepting.quotas)
    finishing, leases = Completion(settings, uploads, submitting), Leases(settings.storage_timeout_s)
    router = APIRouter()
    router.include_router(Direct(settings, uploads, finishing, limits, leases).routes())
    router.include_router(tus_routes(Tus(settings, uploads, finishing, limits, leases)))
    return router
