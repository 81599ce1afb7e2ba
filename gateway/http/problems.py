"""Refusals: every error leaves as RFC 9457 `application/problem+json`, with a stable code and nothing internal."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from schemas.http.problems import ProblemBody, ProblemCode, ProblemItem
from streams.errors import DependencyUnavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PROBLEM_SCHEMA = {"$ref": "#/components/schemas/ProblemBody"}

TITLES: dict[ProblemCode, tuple[int, str]] = {
    ProblemCode.BAD_REQUEST: (400, "The request cannot be read"),
    ProblemCode.UNAUTHORIZED: (401, "Credentials are needed, or those sent open nothing"),
    ProblemCode.FORBIDDEN: (403, "This is not allowed"),
    ProblemCode.INVALID_FIELD: (422, "A parameter or field is not as it must be"),
    ProblemCode.UNKNOWN_FIELD: (400, "The request has a field or parameter nobody reads"),
    ProblemCode.MISSING_FILE: (400, "The form has no file"),
    ProblemCode.EMPTY_FILE: (400, "The file is empty"),
    ProblemCode.INVALID_METADATA: (400, "The metadata is not a small JSON object"),
    ProblemCode.INVALID_BUCKET: (400, "The bucket's name is not allowed"),
    ProblemCode.INVALID_URL: (400, "The URL is not one that can be fetched"),
    ProblemCode.INVALID_DIGEST: (400, "The digest cannot be read, or is of no algorithm known here"),
    ProblemCode.DIGEST_MISMATCH: (400, "What arrived is not what the digest says"),
    ProblemCode.INVALID_IDEMPOTENCY_KEY: (400, "The Idempotency-Key cannot be read"),
    ProblemCode.INVALID_CURSOR: (400, "The cursor is none that this listing gave"),
    ProblemCode.NOT_FOUND: (404, "There is no such thing"),
    ProblemCode.NO_SUCH_SIZE: (404, "The image has no such size"),
    ProblemCode.METHOD_NOT_ALLOWED: (405, "The method is not allowed here"),
    ProblemCode.UPLOAD_TOO_SLOW: (408, "The upload took too long"),
    ProblemCode.IDEMPOTENCY_KEY_IN_USE: (409, "The first request with this key is not answered yet"),
    ProblemCode.DIRECT_UPLOAD_UNAVAILABLE: (409, "Files cannot be sent straight to the store here"),
    ProblemCode.NOT_ARRIVED: (409, "The file is not in the store yet"),
    ProblemCode.OFFSET_MISMATCH: (409, "The upload goes on elsewhere"),
    ProblemCode.UNSUPPORTED_TUS_VERSION: (412, "This version of the tus protocol is not spoken here"),
    ProblemCode.UPLOAD_EXPIRED: (410, "The upload was not finished in time"),
    ProblemCode.UPLOAD_BUSY: (423, "Another request is at work on this upload"),
    ProblemCode.TOO_MANY_UPLOADS: (429, "Too many uploads were begun and not finished"),
    ProblemCode.CHECKSUM_MISMATCH: (460, "What arrived is not what its checksum says"),
    ProblemCode.NOT_FINISHED: (409, "The job has not ended yet"),
    ProblemCode.GONE: (410, "The image was deleted"),
    ProblemCode.SUPERSEDED: (410, "A newer job has taken over"),
    ProblemCode.PRECONDITION_FAILED: (412, "It is not as you last saw it any more"),
    ProblemCode.RANGE_NOT_SATISFIABLE: (416, "The range is not in these bytes"),
    ProblemCode.FILE_TOO_LARGE: (413, "The file is too large"),
    ProblemCode.UNSUPPORTED_FORMAT: (415, "The file is not an image of a known format"),
    ProblemCode.UNSUPPORTED_MEDIA_TYPE: (415, "The body is not of a type that is read here"),
    ProblemCode.IDEMPOTENCY_KEY_REUSED: (422, "The key belongs to another request"),
    ProblemCode.INVALID_ARCHIVE: (422, "The archive is not one that is opened here"),
    ProblemCode.TOO_MANY_FILES: (413, "There are too many files"),
    ProblemCode.NOTHING_ACCEPTED: (422, "No file of the batch was accepted"),
    ProblemCode.CORRUPT_IMAGE: (422, "The image cannot be decoded"),
    ProblemCode.NO_VECTOR: (409, "The image cannot be compared by meaning"),
    ProblemCode.HEADERS_TOO_LARGE: (431, "The head of the request is too large"),
    ProblemCode.RATE_LIMITED: (429, "Too much was asked in too short a time"),
    ProblemCode.QUOTA_EXCEEDED: (403, "There is no room left for this owner"),
    ProblemCode.TOO_MANY_KEYS: (409, "There are as many API keys as there may be"),
    ProblemCode.INTERNAL_ERROR: (500, "Something is wrong here, not with the request"),
    ProblemCode.DEPENDENCY_UNAVAILABLE: (503, "A part of the system does not answer"),
    ProblemCode.LIVE_UNAVAILABLE: (503, "This gateway tells of nothing live"),
    ProblemCode.TOO_MANY_LISTENERS: (503, "Too many listen already"),
    ProblemCode.MODEL_UNAVAILABLE: (503, "The model for this is not there"),
    ProblemCode.OVERLOADED: (503, "More is asked at once than can be done"),
}
_BY_STATUS = {
    400: ProblemCode.BAD_REQUEST,
    404: ProblemCode.NOT_FOUND,
    405: ProblemCode.METHOD_NOT_ALLOWED,
    413: ProblemCode.FILE_TOO_LARGE,
    415: ProblemCode.UNSUPPORTED_MEDIA_TYPE,
}


@dataclass(slots=True)
class Problem(Exception):
    """Refuse the request. `detail` is read by the client: never an internal name, address or trace."""

    code: ProblemCode
    detail: str
    errors: tuple[ProblemItem, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The HTTP status that goes with the code."""
        return TITLES[self.code][0]


def unavailable(what: str, *, retry_after_s: int) -> Problem:
    """Return the refusal for a dependency that does not answer; nothing of the request has been kept."""
    return Problem(
        ProblemCode.DEPENDENCY_UNAVAILABLE,
        f"{what} does not answer at the moment. Nothing was accepted or changed; try again.",
        headers={"Retry-After": str(retry_after_s)},
    )


def invalid_fields(errors: Sequence[Any]) -> Problem:
    """Return the refusal of fields that pydantic found not as they must be, naming the first twenty."""
    items = tuple(ProblemItem(field=_place(found["loc"]), detail=str(found["msg"])) for found in errors[:20])
    detail = "; ".join(f"{item.field}: {item.detail}" for item in items)
    unknown = bool(errors) and all(found["type"] == "extra_forbidden" for found in errors)
    return Problem(ProblemCode.UNKNOWN_FIELD if unknown else ProblemCode.INVALID_FIELD, detail, items)


def respond(request: Request, problem: Problem, *, status: int | None = None) -> JSONResponse:
    """Return a problem as a response."""
    body = ProblemBody(
        type=f"urn:darkroom:problem:{problem.code}",
        code=problem.code,
        title=TITLES[problem.code][1],
        status=status or problem.status,
        detail=problem.detail,
        instance=request.url.path,
        correlation_id=getattr(request.state, "correlation_id", None),
        errors=problem.errors,
    )
    content = body.model_dump(mode="json", exclude_none=True)
    if not problem.errors:
        del content["errors"]
    headers = {"Cache-Control": "no-store", **problem.headers}
    return JSONResponse(content, status_code=body.status, headers=headers, media_type=MEDIA_TYPE)


def handle_problems(app: FastAPI, *, retry_after_s: int) -> None:
    """Make an app answer every error as a problem, including the framework's. gateway.apps.factory handles bugs."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)  # noqa: S101 - registered for this type below
        return respond(request, error)

    async def dependency_away(request: Request, error: Exception) -> JSONResponse:
        log.warning("a dependency did not answer", extra={"path": request.url.path, "error": repr(error)})
        return respond(request, unavailable("A part of the system", retry_after_s=retry_after_s))

    async def framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        code = _BY_STATUS.get(error.status_code, ProblemCode.BAD_REQUEST)
        detail = {404: "Nothing is at this path.", 405: "See the Allow header."}.get(error.status_code, error.detail)
        problem = Problem(code, str(detail), headers=dict(error.headers or {}))
        return respond(request, problem, status=error.status_code)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return respond(request, invalid_fields(error.errors()))

    app.add_exception_handler(Problem, refused)
    app.add_exception_handler(DependencyUnavailable, dependency_away)
    app.add_exception_handler(TimeoutError, dependency_away)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)


def bug(request: Request, error: Exception) -> JSONResponse:
    """Log our own mistake with its traceback; tell the client nothing but where to look."""
    log.error("a request failed", exc_info=error, extra={"path": request.url.path})
    return respond(request, Problem(ProblemCode.INTERNAL_ERROR, "It was logged under the correlation id."))


def documented(*codes: ProblemCode) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these refusals, by status."""
    found: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status, title = TITLES[code]
        text = f"`{code}`: {title}"
        known = found.setdefault(
            status, {"description": "", "content": {MEDIA_TYPE: {"schema": PROBLEM_SCHEMA, "examples": {}}}}
        )
        known["description"] = f"{known['description']}; {text}" if known["description"] else text
        known["content"][MEDIA_TYPE]["examples"][str(code)] = {"summary": title, "value": _example(code)}
    return found


def _example(code: ProblemCode) -> dict[str, Any]:
    status, title = TITLES[code]
    return {
        "type": f"urn:darkroom:problem:{code}",
        "code": str(code),
        "title": title,
        "status": status,
        "detail": f"{title}.",
        "instance": "/api/v1/images/0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b",
        "correlation_id": "upload-42",
    }


def _place(location: tuple[int | str, ...]) -> str:
    parts = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    return ".".join(parts)[:200] or "body"
