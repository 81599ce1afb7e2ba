"""Parsing and validation of tags, categories and metadata that clients send with an image."""

from __future__ import annotations

import json
from collections.abc import Iterable

from pydantic import JsonValue, TypeAdapter, ValidationError

from gateway.http.problems import Problem
from schemas.annotations import MAX_TAGS, MAX_WORD, Category, Tag
from schemas.http.problems import ProblemCode, ProblemItem

_TAG: TypeAdapter[str] = TypeAdapter(Tag)
_CATEGORY: TypeAdapter[str] = TypeAdapter(Category)


def read_tags(given: str | Iterable[str] | None, *, field: str = "tags") -> tuple[str, ...]:
    """Return unique tags in order, from one or several comma-separated texts. Raises Problem."""
    texts = [given or ""] if given is None or isinstance(given, str) else given
    tags = tuple(dict.fromkeys(tag.strip() for text in texts for tag in text.split(",") if tag.strip()))
    if len(tags) > MAX_TAGS:
        raise _invalid_field(field, f"An image may have at most {MAX_TAGS} tags.")
    try:
        return tuple(_TAG.validate_python(tag) for tag in tags)
    except ValidationError:
        detail = f"A tag must have 1 to {MAX_WORD} characters, without control characters."
        raise _invalid_field(field, detail) from None


def read_category(given: str | None, *, field: str = "category") -> str | None:
    """Return a category, None for none. Raises Problem."""
    if given is None or not given.strip():
        return None
    try:
        return _CATEGORY.validate_python(given.strip())
    except ValidationError:
        detail = f"A category must have 1 to {MAX_WORD} characters, without commas and control characters."
        raise _invalid_field(field, detail) from None


def _invalid_field(field: str, detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, f"{field}: {detail}", (ProblemItem(field=field, detail=detail),))


_MAX_DEPTH = 32  # of nested metadata: deep enough for people, shallow enough for every JSON reader


def read_metadata(text: str | None, *, max_bytes: int) -> dict[str, JsonValue]:
    """Return the client's metadata. Raises Problem unless it is a JSON object of at most `max_bytes`."""
    if text is None or not text.strip():
        return {}
    if len(text.encode()) > max_bytes:
        raise Problem(ProblemCode.INVALID_METADATA, f"The metadata is larger than the limit of {max_bytes} bytes.")
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise Problem(ProblemCode.INVALID_METADATA, "The metadata is not valid JSON.") from None
    if not isinstance(value, dict):
        raise Problem(ProblemCode.INVALID_METADATA, "The metadata must be a JSON object.")
    return check_metadata(value, max_bytes=max_bytes)


def check_metadata(value: dict[str, JsonValue], *, max_bytes: int) -> dict[str, JsonValue]:
    """Return the metadata. Raises Problem if it is too large, too deep, or not portable JSON."""
    if _depth(value) > _MAX_DEPTH:
        raise Problem(
            ProblemCode.INVALID_METADATA, f"The metadata is nested deeper than the limit of {_MAX_DEPTH} levels."
        )
    try:
        # Python parses 1e999 and lone surrogates, which have no JSON representation.
        size = len(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode())
    except ValueError:
        detail = "The metadata contains a number or character that JSON cannot represent."
        raise Problem(ProblemCode.INVALID_METADATA, detail) from None
    if size > max_bytes:
        raise Problem(ProblemCode.INVALID_METADATA, f"The metadata is larger than the limit of {max_bytes} bytes.")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")  # NaN and Infinity are not in RFC 8259


def _depth(value: JsonValue) -> int:
    deepest, waiting = 0, [(value, 1)]
    while waiting:
        found, depth = waiting.pop()
        deepest = max(deepest, depth)
        inside = found.values() if isinstance(found, dict) else found if isinstance(found, list) else ()
        waiting.extend((item, depth + 1) for item in inside if isinstance(item, dict | list))
    return deepest
