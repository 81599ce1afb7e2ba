"""Conditional requests (RFC 9110 section 13): 304 for a response that the client has already."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel

_DIGITS = 32  # of the sha256 of a body, in its entity tag

TAGGED: dict[str, Any] = {
    "description": "of the response; for If-None-Match",
    "schema": {"type": "string"},
    "example": '"5f2b51ca2fdc5baa31ec02e002f69aec"',
}
"""OpenAPI description of the ETag header."""

CONDITIONAL: dict[str, Any] = {
    "parameters": [
        {
            "name": "If-None-Match",
            "in": "header",
            "required": False,
            "description": "304 if the entity tag is one of these",
            "schema": {"type": "string"},
            "example": '"5f2b51ca2fdc5baa31ec02e002f69aec"',
        }
    ]
}
"""OpenAPI description of the request headers."""


def answered(request: Request, body: BaseModel, headers: Mapping[str, str] | None = None) -> Response:
    """Return a response with an entity tag; 304 without a body, if If-None-Match has that tag."""
    return tagged(request, body.model_dump_json(exclude_none=True).encode(), "application/json", headers)


def tagged(request: Request, content: bytes, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return bytes with their entity tag; 304 without a body, if If-None-Match has that tag."""
    found = {"ETag": tag_of(content), "Cache-Control": "private, no-cache", **(headers or {})}
    if names(request.headers.get("if-none-match"), found["ETag"]):
        return Response(status_code=304, headers=found)
    return Response(content, media_type=media_type, headers=found)


def tag_of(content: bytes) -> str:
    """Return the strong entity tag of a body."""
    return f'"{hashlib.sha256(content).hexdigest()[:_DIGITS]}"'


def names(header: str | None, etag: str) -> bool:
    """Return whether an If-None-Match has the entity tag (section 13.1.2, weak comparison)."""
    given = [tag.strip().removeprefix("W/") for tag in (header or "").split(",")]
    return "*" in given or etag in given


def matches(header: str, etag: str) -> bool:
    """Return whether an If-Match has the entity tag (section 13.1.1, strong comparison)."""
    given = [tag.strip() for tag in header.split(",")]
    return "*" in given or etag in given
