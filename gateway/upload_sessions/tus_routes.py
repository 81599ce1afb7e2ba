"""Routes of resumable and direct uploads, with the OpenAPI description of the tus headers."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from fastapi import Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from gateway.access.identity import Scope
from gateway.access.permissions import public, requires
from gateway.access.routes import Routes
from gateway.http.problems import Problem, documented, unavailable
from gateway.limits.rate_limits import Limits
from gateway.openapi.examples import JOB_ID
from gateway.settings import GatewaySettings
from gateway.upload_sessions.completion import Completion
from gateway.upload_sessions.direct import Direct
from gateway.upload_sessions.leases import Leases
from gateway.upload_sessions.store import Uploads
from gateway.upload_sessions.tus import Tus
from gateway.upload_sessions.tus_headers import ALGORITHMS, MEDIA_TYPE, VERSION, VERSION_HEADER
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
        _header("Upload-Defer-Length", "1: Upload-Length follows in a later request", "1"),
        _header(
            "Upload-Metadata",
            "filename and the form fields of an upload, each with its value in Base64; other names are ignored",
            "filename Y2F0LmpwZw==,tags Y2F0",
        ),
        _CHECKSUM,
    ],
    "requestBody": {"required": False, "content": _BODY},
}
_PART: dict[str, Any] = {
    "parameters": [
        _TUS,
        _header("Upload-Offset", "offset of the body in the file, in bytes", "0", required=True),
        _CHECKSUM,
    ],
    "requestBody": {"required": True, "content": _BODY},
}


def _response(status: int, description: str, *names: str) -> dict[int | str, dict[str, Any]]:
    """Describe a response without a body, by its headers."""
    headers = {
        name: {
            "description": _RESPONSE_HEADERS[name][0],
            "schema": {"type": "string"},
            "example": _RESPONSE_HEADERS[name][1],
        }
        for name in ("Tus-Resumable", *names)
    }
    return {status: {"description": description, "headers": headers}}


_RESPONSE_HEADERS = {
    "Tus-Resumable": ("the protocol's version", VERSION),
    "Upload-Offset": ("bytes received", "70000"),
    "Upload-Length": ("bytes of the whole file", "123456"),
    "Upload-Defer-Length": ("1: the length is not declared yet", "1"),
    "Upload-Metadata": ("as the client sent it", "filename Y2F0LmpwZw=="),
    "Upload-Expires": ("when the upload expires", "Sun, 22 Nov 2026 18:30:00 GMT"),
    "Darkroom-Job": ("the job, once the image is accepted", JOB_ID),
    "Link": (
        "rel=status: URL of the job's status",
        f'<https://images.example.org/api/v1/images/jobs/{JOB_ID}>; rel="status"',
    ),
}
_ENDED = ("Upload-Offset", "Upload-Expires", "Darkroom-Job", "Link")


def tus_route_class(retry_after_s: int) -> type[APIRoute]:
    """Return a route class that adds the Tus-Resumable header to every response, errors included."""

    class TusRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handle_tus(request: Request) -> Response:
                try:
                    response = await handle(request)
                except Problem as problem:
                    problem.headers = {**problem.headers, **VERSION_HEADER}
                    raise
                except (DependencyUnavailable, TimeoutError) as error:
                    translated = unavailable("A dependency", retry_after_s=retry_after_s)
                    translated.headers = {**translated.headers, **VERSION_HEADER}
                    raise translated from error
                response.headers.update(VERSION_HEADER)
                return response

            return handle_tus

    return TusRoute


_FOUND = (ProblemCode.NOT_FOUND, ProblemCode.UPLOAD_EXPIRED, ProblemCode.UPLOAD_BUSY)
_RECEIVED = (
    ProblemCode.BAD_REQUEST,
    ProblemCode.INVALID_DIGEST,
    ProblemCode.UPLOAD_TOO_SLOW,
    ProblemCode.FILE_TOO_LARGE,
    ProblemCode.UNSUPPORTED_FORMAT,
    ProblemCode.CHECKSUM_MISMATCH,
    ProblemCode.UNSUPPORTED_MEDIA_TYPE,
)
_METADATA = (
    ProblemCode.EMPTY_FILE,
    ProblemCode.INVALID_METADATA,
    ProblemCode.INVALID_BUCKET,
    ProblemCode.INVALID_FIELD,
)
_LIMITS = (ProblemCode.TOO_MANY_UPLOADS, ProblemCode.RATE_LIMITED)
_EVERY = (ProblemCode.UNSUPPORTED_TUS_VERSION, ProblemCode.DEPENDENCY_UNAVAILABLE)


@dataclass(frozen=True, slots=True)
class _TusRoute:
    """A request of the tus protocol: its answer, and the problems besides those of every one."""

    method: str
    path: str
    endpoint: Callable[..., Coroutine[Any, Any, Response]]
    summary: str
    extra: dict[str, Any]
    answer: tuple[int, str, *tuple[str, ...]]  # status, description, headers
    problems: tuple[ProblemCode, ...]
    response_class: type[Response] = JSONResponse


def _protocol(tus: Tus) -> tuple[_TusRoute, ...]:
    """Return the requests of the tus protocol on uploads."""
    return (
        _TusRoute(
            "POST", _ROOT, tus.create, "Create a resumable upload", _CREATION,
            (201, "the upload is created", *_ENDED),
            (*_RECEIVED, *_METADATA, *_LIMITS, ProblemCode.QUOTA_EXCEEDED), Response,
        ),
        _TusRoute(
            "HEAD", _ONE, tus.head, "Get the offset of a resumable upload", _PARAMETERS,
            (200, "the upload's offset", *_ENDED, "Upload-Length", "Upload-Defer-Length", "Upload-Metadata"),
            (*_FOUND, ProblemCode.UNSUPPORTED_FORMAT, ProblemCode.QUOTA_EXCEEDED),
        ),
        _TusRoute(
            "PATCH", _ONE, tus.append, "Append bytes to a resumable upload", _PART,
            (204, "the bytes are stored; with the last one the image is accepted", *_ENDED),
            (*_FOUND, *_RECEIVED, ProblemCode.OFFSET_MISMATCH, ProblemCode.QUOTA_EXCEEDED),
        ),
        _TusRoute(
            "DELETE", _ONE, tus.delete, "Abort a resumable upload", _PARAMETERS, (204, "the upload is removed"), _FOUND,
        ),
    )  # fmt: skip


def tus_routes(tus: Tus) -> Routes:
    """Return the tus routes."""
    routes = Routes(tags=["ingest"], route_class=tus_route_class(tus.settings.retry_after_s))
    for path in (_ROOT, _ONE):
        routes.add_api_route(
            path,
            tus.options,
            methods=["OPTIONS"],
            status_code=204,
            dependencies=[public()],
            summary="Get the supported tus version and extensions",
        )
    for route in _protocol(tus):
        routes.add_api_route(
            route.path,
            route.endpoint,
            methods=[route.method],
            status_code=route.answer[0],
            response_class=route.response_class,
            dependencies=[requires(Scope.WRITE)],
            summary=route.summary,
            openapi_extra=route.extra,
            responses=_response(*route.answer) | documented(*route.problems, *_EVERY),
        )
    routes.add_api_route(
        _ONE,
        tus.overridden,
        methods=["POST"],
        dependencies=[requires(Scope.WRITE)],
        summary="The method that X-HTTP-Method-Override names",
        include_in_schema=False,
    )
    routes.add_api_route(
        _ONE,
        tus.show,
        methods=["GET"],
        dependencies=[requires(Scope.WRITE)],
        summary="Get an upload's state and result",
        route_class_override=APIRoute,
        responses=documented(ProblemCode.NOT_FOUND, ProblemCode.UPLOAD_EXPIRED, ProblemCode.DEPENDENCY_UNAVAILABLE),
    )
    return routes


def tus_and_direct_routes(
    settings: GatewaySettings, files: FileStore, submission: Submission, limits: Limits
) -> list[Routes]:
    """Return the routes of resumable and direct uploads."""
    uploads = Uploads(settings, files, submission.acceptance.quotas)
    completion, leases = Completion(settings, uploads, submission), Leases(settings.storage_timeout_s)
    return [
        Direct(settings, uploads, completion, limits, leases).routes(),
        tus_routes(Tus(settings, uploads, completion, limits, leases)),
    ]
