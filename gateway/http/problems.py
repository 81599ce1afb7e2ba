"""Errors as RFC 9457 `application/problem+json`, with a stable code and nothing internal."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from schemas.http.problems import ProblemBody, ProblemCode, ProblemItem
from streams.errors import DependencyUnavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
PROBLEM_SCHEMA = {"$ref": "#/components/schemas/ProblemBody"}

TITLES: dict[ProblemCode, tuple[int, str]] = {
    ProblemCode.BAD_REQUEST: (400, "The request cannot be read"),
    ProblemCode.UNAUTHORIZED: (401, "Missing or invalid credentials"),
    ProblemCode.FORBIDDEN: (403, "The caller is not allowed to do this"),
    ProblemCode.INVALID_FIELD: (422, "A parameter or field is invalid"),
    ProblemCode.UNKNOWN_FIELD: (400, "The request has an unknown field or parameter"),
    ProblemCode.MISSING_FILE: (400, "The form has no file"),
    ProblemCode.EMPTY_FILE: (400, "The file is empty"),
    ProblemCode.INVALID_METADATA: (400, "The metadata is not a small JSON object"),
    ProblemCode.INVALID_BUCKET: (400, "The bucket's name is not allowed"),
    ProblemCode.INVALID_URL: (400, "The URL cannot be fetched"),
    ProblemCode.INVALID_DIGEST: (400, "The digest cannot be read, or its algorithm is not supported"),
    ProblemCode.DIGEST_MISMATCH: (400, "The received bytes do not match the digest"),
    ProblemCode.INVALID_IDEMPOTENCY_KEY: (400, "The Idempotency-Key cannot be read"),
    ProblemCode.INVALID_CURSOR: (400, "The cursor is invalid for this listing"),
    ProblemCode.NOT_FOUND: (404, "The resource does not exist"),
    ProblemCode.NO_SUCH_SIZE: (404, "The image has no such size"),
    ProblemCode.METHOD_NOT_ALLOWED: (405, "The resource does not support this method"),
    ProblemCode.UPLOAD_TOO_SLOW: (408, "The upload took too long"),
    ProblemCode.IDEMPOTENCY_KEY_IN_USE: (409, "The first request with this key is still in progress"),
    ProblemCode.DIRECT_UPLOAD_UNAVAILABLE: (409, "The object store does not accept direct uploads"),
    ProblemCode.NOT_ARRIVED: (409, "The file is not in the object store yet"),
    ProblemCode.OFFSET_MISMATCH: (409, "Upload-Offset differs from the stored offset"),
    ProblemCode.UNSUPPORTED_TUS_VERSION: (412, "The tus version is not supported"),
    ProblemCode.UPLOAD_EXPIRED: (410, "The upload has expired"),
    ProblemCode.UPLOAD_BUSY: (423, "Another request is writing to this upload"),
    ProblemCode.TOO_MANY_UPLOADS: (429, "Too many unfinished uploads"),
    ProblemCode.CHECKSUM_MISMATCH: (460, "The received bytes do not match the checksum"),
    ProblemCode.NOT_FINISHED: (409, "The job has not ended yet"),
    ProblemCode.GONE: (410, "The image was deleted"),
    ProblemCode.SUPERSEDED: (410, "A newer job has replaced this one"),
    ProblemCode.PRECONDITION_FAILED: (412, "The resource has changed since it was read"),
    ProblemCode.RANGE_NOT_SATISFIABLE: (416, "The range is outside of the file"),
    ProblemCode.FILE_TOO_LARGE: (413, "The file is too large"),
    ProblemCode.UNSUPPORTED_FORMAT: (415, "The file is not an image of a known format"),
    ProblemCode.UNSUPPORTED_MEDIA_TYPE: (415, "The media type of the body is not supported"),
    ProblemCode.IDEMPOTENCY_KEY_REUSED: (422, "The key was used for a different request"),
    ProblemCode.INVALID_ARCHIVE: (422, "The archive is invalid or not supported"),
    ProblemCode.TOO_MANY_FILES: (413, "There are too many files"),
    ProblemCode.NOTHING_ACCEPTED: (422, "No file of the batch was accepted"),
    ProblemCode.CORRUPT_IMAGE: (422, "The image cannot be decoded"),
    ProblemCode.NO_VECTOR: (409, "The image has no vector to search by"),
    ProblemCode.HEADERS_TOO_LARGE: (431, "The request headers are too large"),
    ProblemCode.RATE_LIMITED: (429, "The rate limit is exceeded"),
    ProblemCode.QUOTA_EXCEEDED: (403, "The owner's quota is exceeded"),
    ProblemCode.TOO_MANY_KEYS: (409, "The number of API keys has reached its maximum"),
    ProblemCode.INTERNAL_ERROR: (500, "Internal error of the server"),
    ProblemCode.DEPENDENCY_UNAVAILABLE: (503, "A dependency is unavailable"),
    ProblemCode.LIVE_UNAVAILABLE: (503, "This gateway has no live events"),
    ProblemCode.TOO_MANY_LISTENERS: (503, "Too many clients are listening"),
    ProblemCode.MODEL_UNAVAILABLE: (503, "The model is unavailable"),
    ProblemCode.OVERLOADED: (503, "The server is overloaded"),
}
_SHOWN_FIELDS = 20  # unknown names that an error lists
_SHOWN_LETTERS = 100  # of an unknown name in an error
_BY_STATUS = {
    400: ProblemCode.BAD_REQUEST,
    404: ProblemCode.NOT_FOUND,
    405: ProblemCode.METHOD_NOT_ALLOWED,
    413: ProblemCode.FILE_TOO_LARGE,
    415: ProblemCode.UNSUPPORTED_MEDIA_TYPE,
}


@dataclass(slots=True)
class Problem(Exception):
    """An error response. Clients see `detail`: it must not contain internal names, addresses or traces."""

    code: ProblemCode
    detail: str
    errors: tuple[ProblemItem, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return TITLES[self.code][0]


def unavailable(what: str, *, retry_after_s: int) -> Problem:
    """Return the error of an unavailable dependency; nothing of the request was stored."""
    return Problem(
        ProblemCode.DEPENDENCY_UNAVAILABLE,
        f"{what} is unavailable. Nothing was accepted or changed; retry later.",
        headers={"Retry-After": str(retry_after_s)},
    )


def invalid_fields(errors: Sequence[Any]) -> Problem:
    """Return the error of fields that pydantic found invalid, with the first twenty."""
    items = tuple(ProblemItem(field=_field_path(found["loc"]), detail=str(found["msg"])) for found in errors[:20])
    detail = "; ".join(f"{item.field}: {item.detail}" for item in items)
    unknown = bool(errors) and all(found["type"] == "extra_forbidden" for found in errors)
    return Problem(ProblemCode.UNKNOWN_FIELD if unknown else ProblemCode.INVALID_FIELD, detail, items)


def invalid_model(error: ValidationError, *within: str) -> Problem:
    """Return the error of JSON that does not fit its model; `within` is the path of the field that contains it."""
    found = error.errors(include_url=False, include_input=False, include_context=False)
    return invalid_fields([{**one, "loc": (*within, *one["loc"])} for one in found])


def unknown_fields(
    kind: str, names: Sequence[str], known: Iterable[str], *, headers: Mapping[str, str] = MappingProxyType({})
) -> Problem:
    """Return the error of fields or parameters (`kind`) with unknown names: the first twenty, and the known names."""
    allowed = ", ".join(sorted(known))
    rule = f"Allowed: {allowed}." if allowed else f"No {kind}s are allowed here."
    items = tuple(
        ProblemItem(field=name[:_SHOWN_LETTERS], detail=f"Unknown {kind}. {rule}") for name in names[:_SHOWN_FIELDS]
    )
    detail = f"Unknown {kind} `{items[0].field}`. {rule}"
    return Problem(ProblemCode.UNKNOWN_FIELD, detail, items, headers=headers)


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
    """Make an app respond to every error with a problem, also the framework's. The Edge middleware handles bugs."""

    async def refused(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, Problem)  # noqa: S101 - registered for this type below
        return respond(request, error)

    async def dependency_unavailable(request: Request, error: Exception) -> JSONResponse:
        log.warning("dependency unavailable", extra={"path": request.url.path, "error": repr(error)})
        return respond(request, unavailable("A dependency", retry_after_s=retry_after_s))

    async def framework(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)  # noqa: S101
        code = _BY_STATUS.get(error.status_code, ProblemCode.BAD_REQUEST)
        detail = {404: "The path does not exist.", 405: "See the Allow header."}.get(error.status_code, error.detail)
        problem = Problem(code, str(detail), headers=dict(error.headers or {}))
        return respond(request, problem, status=error.status_code)

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)  # noqa: S101
        return respond(request, invalid_fields(error.errors()))

    app.add_exception_handler(Problem, refused)
    app.add_exception_handler(DependencyUnavailable, dependency_unavailable)
    app.add_exception_handler(TimeoutError, dependency_unavailable)
    app.add_exception_handler(HTTPException, framework)
    app.add_exception_handler(RequestValidationError, invalid)


def bug(request: Request, error: Exception) -> JSONResponse:
    """Log an unhandled exception with its traceback; return a 500 without details."""
    log.error("unhandled exception in a request", exc_info=error, extra={"path": request.url.path})
    return respond(request, Problem(ProblemCode.INTERNAL_ERROR, "Logged with the correlation id."))


def documented(*codes: ProblemCode) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI responses of these codes, by status."""
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


def _field_path(location: tuple[int | str, ...]) -> str:
    parts = [str(part) for part in location if part not in ("body", "query", "path", "header")]
    return ".".join(parts)[:200] or "body"
