"""Completion of the OpenAPI document: adds what all operations have in common.

FastAPI generates the document from the routes. Added are stable operation ids, errors that any operation can return, as
`application/problem+json`, response headers and examples. The errors of single routes come from
`gateway.http.problems.documented`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from gateway.access.permissions import Permissions
from gateway.http.problems import MEDIA_TYPE, PROBLEM_SCHEMA, documented
from gateway.openapi.examples import IMAGE_ID, JOB_ID, SHA256, example_of
from schemas.formats import MEDIA_TYPES
from schemas.http.problems import ProblemBody, ProblemCode
from schemas.values import ID_PATTERN, SHA256_PATTERN

Operation = dict[str, Any]

_METHODS = frozenset({"get", "put", "post", "delete", "options", "head", "patch", "trace"})
_BODY_ERRORS = (ProblemCode.BAD_REQUEST, ProblemCode.UNSUPPORTED_MEDIA_TYPE, ProblemCode.FILE_TOO_LARGE)
_HEADERS: dict[str, dict[str, Any]] = {
    "X-Correlation-ID": {
        "description": "the id of this request: the one that was sent, or a new one; it is in the server's logs",
        "schema": {"type": "string"},
        "example": "upload-42",
    },
    "Retry-After": {
        "description": "seconds to wait before retrying",
        "schema": {"type": "integer", "minimum": 0},
        "example": 5,
    },
    "Location": {
        "description": "the URL of the created resource",
        "schema": {"type": "string", "format": "uri-reference"},
        "example": "https://images.example.org/api/v1/images/jobs/0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b.1",
    },
    "ETag": {
        "description": "version of the resource, for If-None-Match and If-Match",
        "schema": {"type": "string"},
    },
    "Cache-Control": {"description": "how long the response may be cached (RFC 9111)", "schema": {"type": "string"}},
    "Accept-Ranges": {"description": "`bytes`: ranges are supported (RFC 9110)", "schema": {"type": "string"}},
    "Last-Modified": {"description": "when the bytes were written", "schema": {"type": "string"}},
    "WWW-Authenticate": {
        "description": "the credentials that are required (RFC 6750)",
        "schema": {"type": "string"},
        "example": 'Bearer realm="darkroom"',
    },
}
_LIMITS = {
    "RateLimit-Policy": {
        "description": "the limits of the caller (draft-ietf-httpapi-ratelimit-headers)",
        "schema": {"type": "string"},
        "example": '"uploads";q=50;w=3600',
    },
    "RateLimit": {
        "description": "what remains of them, and seconds until more is available",
        "schema": {"type": "string"},
        "example": '"uploads";r=49;t=3600',
    },
    "X-RateLimit-Limit": {
        "description": "the limit that is nearest to being exceeded",
        "schema": {"type": "integer", "minimum": 0},
        "example": 50,
    },
    "X-RateLimit-Remaining": {
        "description": "what remains of it",
        "schema": {"type": "integer", "minimum": 0},
        "example": 49,
    },
    "X-RateLimit-Reset": {
        "description": "seconds until more is available",
        "schema": {"type": "integer", "minimum": 0},
        "example": 3600,
    },
}
_CORRELATION = {
    "name": "X-Correlation-ID",
    "in": "header",
    "required": False,
    "description": "an id of yours for this request: 1 to 128 letters, digits, dots, dashes or underscores. It is in "
    "the response, in every error and in the server's logs; an invalid one is replaced.",
    "schema": {"type": "string"},
    "example": "upload-42",
}
_IDS = {
    "image_id": (ID_PATTERN, IMAGE_ID),
    "sha256": (SHA256_PATTERN, SHA256),
    "job_id": (ID_PATTERN.replace("$", r"\.[1-9][0-9]{0,8}$"), JOB_ID),
}
_ANSWERS = {"202": ("Location", "Retry-After"), "201": ("Location",), "401": ("WWW-Authenticate",)}


def complete(document: dict[str, Any], permissions: Permissions) -> dict[str, Any]:
    """Complete an OpenAPI document in place, and return it."""
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    schemas["ProblemBody"], others = _problem_schemas()
    schemas.update(others)
    for unused in ("HTTPValidationError", "ValidationError"):
        schemas.pop(unused, None)
    components["headers"] = {**_HEADERS, **_LIMITS, **components.get("headers", {})}
    components["parameters"] = {"CorrelationId": _CORRELATION, **components.get("parameters", {})}
    for item in document.get("paths", {}).values():
        item.pop("options", None)  # every resource supports it
    for method, path, operation in operations(document):
        operation["operationId"] = _name(method, path)
        _describe_form(operation)
        _describe_ids(path, operation)
        protected = permissions.get((method.upper(), path)) is not None
        _add_errors(operation, protected=protected)
        operation.setdefault("parameters", []).append({"$ref": "#/components/parameters/CorrelationId"})
        for status, response in operation["responses"].items():
            _name_headers(status, response, limited=protected)
            _describe_body(response)
        _add_examples(operation, schemas)
        _name_bodies(operation, schemas)
        _share_examples(operation, components.setdefault("examples", {}))
    return document


def operations(document: dict[str, Any]) -> Iterator[tuple[str, str, Operation]]:
    """Yield method, path and operation of a document."""
    for path, item in document.get("paths", {}).items():
        for method, operation in item.items():
            if method in _METHODS:
                yield method, path, operation


def _problem_schemas() -> tuple[dict[str, Any], dict[str, Any]]:
    whole = ProblemBody.model_json_schema(ref_template="#/components/schemas/{model}")
    others = whole.pop("$defs", {})
    return whole, others


def _name(method: str, path: str) -> str:
    """Return an operation's id, made of method and path, so that it changes only with them."""
    named = re.sub(r"\{(\w+)(:\w+)?\}", r"by_\1", path.removeprefix("/api/v1"))
    return "_".join([method, *re.findall(r"\w+", named.replace("-", "_"))]) if named != "/" else f"{method}_root"


def _describe_form(operation: Operation) -> None:
    """Add what all forms have in common: no other fields, and the media types of files."""
    content = operation.get("requestBody", {}).get("content", {}).get("multipart/form-data")
    if content is None or "properties" not in content["schema"]:
        return
    content["schema"].setdefault("additionalProperties", False)
    for name, field in content["schema"]["properties"].items():
        if (field.get("items") or field).get("format") == "binary":
            content.setdefault("encoding", {}).setdefault(name, {"contentType": ", ".join(MEDIA_TYPES.values())})


def _describe_ids(path: str, operation: Operation) -> None:
    """Add the pattern of ids in a path. Others get 404, not a validation error."""
    if not path.startswith("/api/v1/images/"):
        return
    for parameter in operation.get("parameters", ()):
        if parameter.get("in") == "path" and parameter["name"] in _IDS:
            pattern, example = _IDS[parameter["name"]]
            parameter["schema"] = {"type": "string", "pattern": pattern, **parameter["schema"]}
            parameter.setdefault("example", example)


def _add_errors(operation: Operation, *, protected: bool) -> None:
    """Add the errors that any route can return, so that routes need not list them."""
    responses: dict[str, Any] = operation.setdefault("responses", {})
    if "422" in responses and "HTTPValidationError" in str(responses["422"]):  # FastAPI's default
        del responses["422"]
        _add_error(responses, ProblemCode.INVALID_FIELD)
    _add_error(responses, ProblemCode.INTERNAL_ERROR)
    _add_error(responses, ProblemCode.HEADERS_TOO_LARGE)
    if "requestBody" in operation:
        for code in (*_BODY_ERRORS, ProblemCode.INVALID_FIELD):
            _add_error(responses, code)
    if protected:
        for code in (
            ProblemCode.UNAUTHORIZED,
            ProblemCode.FORBIDDEN,
            ProblemCode.UNKNOWN_FIELD,
            ProblemCode.RATE_LIMITED,
            ProblemCode.OVERLOADED,
            ProblemCode.DEPENDENCY_UNAVAILABLE,
        ):
            _add_error(responses, code)


def _add_error(responses: dict[str, Any], code: ProblemCode) -> None:
    ((status, wanted),) = documented(code).items()
    found = responses.setdefault(str(status), wanted)
    content = found.setdefault("content", {}).setdefault(MEDIA_TYPE, {"schema": PROBLEM_SCHEMA, "examples": {}})
    examples = content.setdefault("examples", {})
    if code not in examples:
        examples[str(code)] = wanted["content"][MEDIA_TYPE]["examples"][str(code)]
        found["description"] = f"{found['description']}; {wanted['description']}"


def _name_headers(status: str, response: dict[str, Any], *, limited: bool) -> None:
    named = [
        "X-Correlation-ID",
        *_ANSWERS.get(status, ()),
        *(_LIMITS if limited and (status[0] == "2" or status == "429") else ()),
    ]
    if status in ("409", "429", "503"):
        named.append("Retry-After")
    headers = response.setdefault("headers", {})
    for name in (*named, *(name for name in headers if name in _HEADERS)):
        if "description" not in headers.get(name, {}):
            headers[name] = {"$ref": f"#/components/headers/{name}"}


def _describe_body(response: dict[str, Any]) -> None:
    """Remove what is wrong: an empty JSON schema of a response without a body, and the schema of a stream."""
    content = response.get("content", {})
    content.get("text/event-stream", {}).pop("schema", None)
    if content.get("application/json", {}).get("schema", ...) == {}:
        del content["application/json"]
    if not content:
        response.pop("content", None)


def _add_examples(operation: Operation, schemas: dict[str, Any]) -> None:
    bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
    for body in bodies:
        for content in body.get("content", {}).values():
            if "schema" in content and not content.keys() & {"example", "examples"} and not _is_bytes(content):
                content["example"] = example_of(content["schema"], schemas)


def _share_examples(operation: Operation, shared: dict[str, Any]) -> None:
    """Move the examples of errors into the components: most operations share the same dozen."""
    for response in operation["responses"].values():
        examples = response.get("content", {}).get(MEDIA_TYPE, {}).get("examples", {})
        for code, example in examples.items():
            shared.setdefault(code, example)
            examples[code] = {"$ref": f"#/components/examples/{code}"}


def _name_bodies(operation: Operation, schemas: dict[str, Any]) -> None:
    """Name the schemas of bodies that FastAPI does not read: generated clients name their models by them."""
    for content in operation.get("requestBody", {}).get("content", {}).values():
        name = content.get("schema", {}).get("title")
        if name is not None and schemas.setdefault(name, content["schema"]) == content["schema"]:
            content["schema"] = {"$ref": f"#/components/schemas/{name}"}


def _is_bytes(content: dict[str, Any]) -> bool:
    return content["schema"].get("format") == "binary" or not content["schema"]
