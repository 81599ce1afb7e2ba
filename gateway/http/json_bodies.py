"""JSON bodies read with a size limit: FastAPI itself would read a body of any size into memory."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect

from gateway.http.digests import declared_digests
from gateway.http.problems import Problem, invalid_model
from gateway.settings import GatewaySettings
from schemas.http.problems import ProblemCode

M = TypeVar("M", bound=BaseModel)

JSON = "application/json"
_CLOSE = {"Connection": "close"}  # the rest of the body is not read


async def read_json(
    request: Request, kind: type[M], settings: GatewaySettings, *, media_types: Sequence[str] = (JSON,)
) -> M:
    """Return the body as a model. Raises Problem: not JSON, too large, too slow, or invalid."""
    if media_type(request) not in media_types:
        raise Problem(ProblemCode.UNSUPPORTED_MEDIA_TYPE, f"Send {' or '.join(media_types)}.", headers=_CLOSE)
    raw, check = bytearray(), declared_digests(request)
    try:
        async with asyncio.timeout(settings.upload_idle_s):
            async for chunk in request.stream():
                raw += chunk
                if len(raw) > settings.max_json_bytes:
                    detail = f"The JSON may have {settings.max_json_bytes} bytes at most."
                    raise Problem(ProblemCode.FILE_TOO_LARGE, detail, headers=_CLOSE)
    except TimeoutError:
        raise Problem(
            ProblemCode.UPLOAD_TOO_SLOW,
            f"The body was not complete within {settings.upload_idle_s:g} s.",
            headers=_CLOSE,
        ) from None
    except ClientDisconnect:
        raise Problem(
            ProblemCode.BAD_REQUEST, "The connection closed before the body was complete.", headers=_CLOSE
        ) from None
    check.update(raw)
    check.check("the body")
    try:
        return _read(kind, bytes(raw))
    except ValidationError as error:
        raise invalid_model(error) from None


def _read(kind: type[M], raw: bytes) -> M:
    """Return a model of JSON, without type coercion; 1.0 is an integer, as in JSON Schema."""
    try:
        return kind.model_validate_json(raw, strict=True)
    except ValidationError as error:
        if not any(found["type"] == "int_type" and isinstance(found["input"], float) for found in error.errors()):
            raise
        whole = json.loads(raw, parse_float=lambda text: int(float(text)) if float(text).is_integer() else float(text))
        return kind.model_validate_json(json.dumps(whole), strict=True)


def media_type(request: Request) -> str:
    """Return the media type of a request's body, without parameters."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def described(kind: type[BaseModel], *, media_types: Sequence[str] = (JSON,)) -> dict[str, Any]:
    """Return the OpenAPI description of a JSON body that `read_json` reads."""
    whole = whole_schema(kind)
    return {"requestBody": {"required": True, "content": {name: {"schema": whole} for name in media_types}}}


def whole_schema(kind: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON Schema without references: it can stand anywhere in the document."""
    schema = kind.model_json_schema()
    whole: dict[str, Any] = _inlined(schema, schema.pop("$defs", {}))
    return whole


def _inlined(schema: Any, definitions: dict[str, Any]) -> Any:
    # References in a route's own schema would be resolved against the whole document.
    if isinstance(schema, list):
        return [_inlined(inside, definitions) for inside in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(schema.get("$ref"), str):
        return _inlined(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    return {name: _inlined(inside, definitions) for name, inside in schema.items()}
