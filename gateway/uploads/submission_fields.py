"""Fields of a submission: bucket, tags, category, metadata, lane and duplicate handling.

They arrive as form fields, JSON, query parameters or a tus header, and are parsed into `Details`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import JsonValue, ValidationError

from gateway.http.json_bodies import whole_schema
from gateway.http.problems import Problem, invalid_model
from gateway.images.user_metadata import read_category, read_metadata, read_tags
from schemas.annotations import MAX_TAGS, MAX_WORD
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.http.submissions import BUCKET_PATTERN, MAX_URL_LENGTH, ProfileRequest
from schemas.values import Lane, Profile

C = TypeVar("C", bound=StrEnum)

_BUCKET = re.compile(BUCKET_PATTERN)
_WORD = rf"[^\x00-\x1f\x7f,]{{0,{MAX_WORD}}}"


class OnDuplicate(StrEnum):
    """How an upload of bytes that the owner has uploaded before is handled."""

    NEW = "new"
    REUSE = "reuse"


FIELDS = frozenset({"bucket", "metadata", "tags", "category", "lane", "on_duplicate", "profile"})
"""The submission fields of a form, a query or a tus header."""
JSON_FIELDS = ("metadata", "profile")
"""Those whose text is a JSON object."""

FIELD_SCHEMAS: dict[str, dict[str, Any]] = {
    "bucket": {"type": "string", "default": "default", "pattern": f"^$|{BUCKET_PATTERN}", "examples": ["default"]},
    "metadata": {
        "type": "object",
        "description": "a JSON object, returned unchanged",
        "examples": [{"album": "pets"}],
    },
    "tags": {
        "type": "string",
        "pattern": f"^{_WORD}(?:,{_WORD}){{0,{MAX_TAGS - 1}}}$",
        "description": f"comma-separated, at most {MAX_TAGS}",
        "examples": ["cat,black and white"],
    },
    "category": {
        "type": "string",
        "pattern": f"^{_WORD}$",
        "description": "one category of the image",
        "examples": ["animals"],
    },
    "lane": {
        "type": "string",
        "enum": [*Lane, ""],
        "default": Lane.INTERACTIVE,
        "description": "bulk: processed after interactive images",
    },
    "on_duplicate": {
        "type": "string",
        "enum": [*OnDuplicate, ""],
        "default": OnDuplicate.NEW,
        "description": "reuse: return your existing image of the same bytes, if there is one",
    },
    "profile": whole_schema(ProfileRequest),
}
"""OpenAPI schemas of the fields. An empty field counts as absent: browsers send every field of a form."""


_JSON_TEXT = {"type": "string", "contentMediaType": "application/json", "description": "a JSON object"}


def query_parameters(use: str, others: Mapping[str, dict[str, Any]] | None = None) -> list[dict[str, Any]]:
    """Return the OpenAPI description of the fields, and others, as query parameters; `use` is when they are sent."""
    return [
        {
            "name": name,
            "in": "query",
            "required": False,
            "description": f"{use}: {schema.get('description', 'as in a form')}",
            "schema": {known: value for known, value in schema.items() if known not in ("description", "examples")},
        }
        for name, schema in {**FIELD_SCHEMAS, **dict.fromkeys(JSON_FIELDS, _JSON_TEXT), **(others or {})}.items()
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """The submission fields of one image."""

    bucket: str = "default"
    context: dict[str, JsonValue] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    category: str | None = None
    lane: Lane = Lane.INTERACTIVE
    on_duplicate: OnDuplicate = OnDuplicate.NEW
    profile: Profile = field(default_factory=Profile)

    def as_fields(self) -> dict[str, Any]:
        """Return the fields that the image's event and receipt contain."""
        names = ("bucket", "context", "tags", "category", "profile")
        return {name: getattr(self, name) for name in names}

    def non_default_fields(self) -> dict[str, Any]:
        """Return the fields that differ from their default, so that adding a field changes no fingerprint."""
        defaults = asdict(Details())
        changed = {name: value for name, value in asdict(self).items() if value != defaults[name]}
        return changed | ({"profile": self.profile.model_dump(mode="json")} if "profile" in changed else {})


def read_details(fields: Mapping[str, str], *, max_metadata_bytes: int) -> Details:
    """Parse the text fields of a form; fields not in FIELDS are ignored. Raises Problem."""
    bucket = fields.get("bucket") or "default"
    if not _BUCKET.fullmatch(bucket):
        detail = (
            "A bucket name is 1 to 64 letters, digits, dots, dashes or underscores and starts with a letter or digit."
        )
        raise Problem(ProblemCode.INVALID_BUCKET, detail)
    return Details(
        bucket=bucket,
        context=read_metadata(fields.get("metadata"), max_bytes=max_metadata_bytes),
        tags=read_tags(fields.get("tags")),
        category=read_category(fields.get("category")),
        lane=_one_of(Lane, "lane", fields.get("lane") or Lane.INTERACTIVE),
        on_duplicate=_one_of(OnDuplicate, "on_duplicate", fields.get("on_duplicate") or OnDuplicate.NEW),
        profile=_read_profile(fields.get("profile")),
    )


def _read_profile(text: str | None) -> Profile:
    if text is None or not text.strip():
        return Profile()
    try:
        return ProfileRequest.model_validate_json(text, strict=True).as_profile()
    except ValidationError as error:
        raise invalid_model(error, "profile") from None


def _one_of(kind: type[C], name: str, text: str) -> C:
    try:
        return kind(text)
    except ValueError:
        raise _invalid_field(name, f"not one of: {', '.join(kind)}") from None


def _invalid_field(name: str, detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, f"{name}: {detail}", (ProblemItem(field=name, detail=detail),))


def read_url(url: str) -> str:
    """Return a syntactically valid URL. Raises Problem. The fetcher decides whether it may be fetched."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Problem(ProblemCode.INVALID_URL, "The URL is malformed.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Problem(ProblemCode.INVALID_URL, "The URL must be absolute and start with http:// or https://.")
    if len(url) > MAX_URL_LENGTH or any(letter.isspace() or not letter.isprintable() for letter in url):
        detail = f"The URL must have at most {MAX_URL_LENGTH} characters, without white space or control characters."
        raise Problem(ProblemCode.INVALID_URL, detail)
    return url
