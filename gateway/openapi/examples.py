"""Examples for the OpenAPI document, generated from a schema with the values that its fields have in this project.

Examples of a route or a field take precedence. A test validates each against its schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

IMAGE_ID = "0199a1b2-c3d4-7e5f-8a6b-7c8d9e0f1a2b"
JOB_ID = f"{IMAGE_ID}.1"
SHA256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
GIF = "GIF89a\x01\x00\x01\x00\x00\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00;"
"""A valid image of one pixel whose bytes are all ASCII, so that it fits in JSON."""
_BASE = "https://images.example.org"
_JOB_URL = f"{_BASE}/api/v1/images/jobs/{JOB_ID}"

# Field -> its value in examples.
_VALUES: dict[str, Any] = {
    "image_id": IMAGE_ID,
    "job_id": JOB_ID,
    "sha256": SHA256,
    "input_sha256": SHA256,
    "status_url": _JOB_URL,
    "result_url": f"{_JOB_URL}/result",
    "erasure_url": f"{_BASE}/api/v1/images/{IMAGE_ID}/erasure",
    "url": f"{_BASE}/api/v1/images/{IMAGE_ID}/direct?size=medium&v={SHA256[:12]}",
    "urls": {"thumbnail": f"{_BASE}/api/v1/images/{IMAGE_ID}/direct?size=thumbnail&v={SHA256[:12]}"},
    "correlation_id": "upload-42",
    "expires_at": "2036-01-01T00:00:00Z",
    "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
    "owner": "default",
    "bucket": "default",
    "filename": "cat.jpg",
    "context": {"album": "holidays"},
    "metadata": {"album": "holidays"},
    "format": "webp",
    "source_format": "jpeg",
    "size": "medium",
    "width": 800,
    "height": 600,
    "aspect_ratio": 1.3333,
    "size_bytes": 48213,
    "dominant_color": "#7a5c3e",
    "palette": ["#7a5c3e", "#d9c8a9"],
    "label": "cat",
    "labels": ["cat", "sofa"],
    "confidence": 0.93,
    "score": 0.97,
    "language": "en",
    "engine": "tesseract",
    "text": "Open all day",
    "content": "Open all day",
    "matched": ["meaning", "label"],
    "query": "a cat on a sofa",
    "stage": "ocr",
    "version": "1",
    "where": "state=completed and version.ocr<2",
    "reason": "a new model is being rolled out",
    "by": "operator",
    "name": "embedder",
}
_FORMATS = {
    "date-time": "2026-11-21T09:30:00Z",
    "date": "2026-11-21",
    "uuid": IMAGE_ID,
    "binary": GIF,
    "uri": _BASE,
    "email": "somebody@example.org",
}
_TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
_MAX_DEPTH = 12  # recursive schemas end here


def example_of(schema: Mapping[str, Any], components: Mapping[str, Any], field: str = "", depth: int = 0) -> Any:
    """Return an example for a JSON Schema. Deterministic."""
    if "$ref" in schema:
        schema = components.get(str(schema["$ref"]).rsplit("/", 1)[-1], {})
    for name in ("examples", "example", "const"):
        if schema.get(name) not in (None, []):
            return schema[name][0] if name == "examples" else schema[name]
    if schema.get("enum"):
        return schema["enum"][0]
    if field in _VALUES and _fits(_VALUES[field], schema):
        return _VALUES[field]
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            chosen: Mapping[str, Any] = next((part for part in schema[union] if part.get("type") != "null"), {})
            return example_of(chosen, components, field, depth)
    if schema.get("default") is not None:
        return schema["default"]
    return _generated(schema, components, field, depth)


def _generated(schema: Mapping[str, Any], components: Mapping[str, Any], field: str, depth: int) -> Any:
    kind = schema.get("type")
    if kind == "object" or "properties" in schema:
        return _object(schema, components, depth)
    if kind == "array":
        return _array(schema, components, field, depth)
    if kind in ("integer", "number"):
        return schema.get("minimum", schema.get("maximum", 1))
    if kind == "boolean":
        return True
    if kind == "string":
        return _text(schema, field)
    return None


def _object(schema: Mapping[str, Any], components: Mapping[str, Any], depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH:
        return {}
    required = set(schema.get("required", ()))
    found = {
        name: example_of(inside, components, name, depth + 1)
        for name, inside in schema.get("properties", {}).items()
        if name in required or not _is_empty(inside)
    }
    more = schema.get("additionalProperties")
    if not found and isinstance(more, Mapping) and more:
        name = example_of(schema.get("propertyNames", {}), components, "", depth + 1) or "medium"
        return {name: example_of(more, components, "", depth + 1)}
    return {name: value for name, value in found.items() if value is not None or name in required}


def _array(schema: Mapping[str, Any], components: Mapping[str, Any], field: str, depth: int) -> list[Any]:
    if depth > _MAX_DEPTH:
        return []
    if "prefixItems" in schema:
        return [example_of(part, components, field, depth + 1) for part in schema["prefixItems"]]
    singular = field.removesuffix("s")
    least = max(1, int(schema.get("minItems", 1)))
    return [example_of(schema.get("items", {}), components, singular, depth + 1)] * least


def _text(schema: Mapping[str, Any], field: str) -> str:
    if schema.get("format") in _FORMATS:
        return _FORMATS[str(schema["format"])]
    if field.endswith("_at") or field in ("at", "time", "leaves_log_by"):
        return _FORMATS["date-time"]
    if field.endswith("url"):
        return _BASE
    return "text"[: int(schema.get("maxLength", 4))].ljust(int(schema.get("minLength", 0)), "x")


def _is_empty(schema: Mapping[str, Any]) -> bool:
    """Return whether a field is usually absent: errors."""
    return schema.get("default", ...) is None and any(
        str(part.get("$ref", "")).endswith("Error") for part in schema.get("anyOf", ())
    )


def _fits(value: Any, schema: Mapping[str, Any]) -> bool:
    kinds = {str(schema.get("type", ""))} | {str(part.get("type", "")) for part in schema.get("anyOf", ())}
    actual = _TYPES[type(value)]
    return actual in kinds or (actual == "integer" and "number" in kinds)
