"""What a client says of an image it hands in: where it goes, its words, its metadata, how long it may wait.

Said in a form's fields, in JSON, in a query or in a tus header, it is read here into one value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any, TypeVar
from urllib.parse import urlsplit

from pydantic import JsonValue

from gateway.http.problems import Problem
from gateway.images.user_metadata import read_category, read_metadata, read_tags
from schemas.annotations import MAX_TAGS, MAX_WORD
from schemas.http.problems import ProblemCode, ProblemItem
from schemas.http.submissions import BUCKET_PATTERN, MAX_URL_LENGTH
from schemas.values import Lane

C = TypeVar("C", bound=StrEnum)

_BUCKET = re.compile(BUCKET_PATTERN)
_WORD = rf"[^\x00-\x1f\x7f,]{{0,{MAX_WORD}}}"


class OnDuplicate(StrEnum):
    """What happens to bytes the owner has handed in before."""

    NEW = "new"
    REUSE = "reuse"


FIELDS = frozenset({"bucket", "metadata", "tags", "category", "lane", "on_duplicate"})
"""The fields of a form (or a query, or a tus header) that say something of an image."""

FIELD_SCHEMAS: dict[str, dict[str, Any]] = {
    "bucket": {"type": "string", "default": "default", "pattern": f"^$|{BUCKET_PATTERN}", "examples": ["default"]},
    "metadata": {
        "type": "object",
        "description": "a JSON object, returned as it is",
        "examples": [{"album": "pets"}],
    },
    "tags": {
        "type": "string",
        "pattern": f"^{_WORD}(?:,{_WORD}){{0,{MAX_TAGS - 1}}}$",
        "description": f"words, comma separated, {MAX_TAGS} at most",
        "examples": ["cat,black and white"],
    },
    "category": {
        "type": "string",
        "pattern": f"^{_WORD}$",
        "description": "the one shelf the image stands on",
        "examples": ["animals"],
    },
    "lane": {
        "type": "string",
        "enum": [*Lane, ""],
        "default": Lane.INTERACTIVE,
        "description": "bulk: when there is room, behind whoever waits",
    },
    "on_duplicate": {
        "type": "string",
        "enum": [*OnDuplicate, ""],
        "default": OnDuplicate.NEW,
        "description": "reuse: if you have handed in the same bytes before, the answer is that image",
    },
}
"""How OpenAPI describes each of them. An empty one counts as absent: browsers send every field of a form."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What is said of one image."""

    bucket: str = "default"
    context: dict[str, JsonValue] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    category: str | None = None
    lane: Lane = Lane.INTERACTIVE
    on_duplicate: OnDuplicate = OnDuplicate.NEW

    def as_fields(self) -> dict[str, Any]:
        """Return what the image's event and receipt say of it."""
        return {"bucket": self.bucket, "context": self.context, "tags": self.tags, "category": self.category}

    def non_default_fields(self) -> dict[str, Any]:
        """Return what differs from saying nothing: so it stays the same when there is more that could be said."""
        nothing = asdict(Details())
        return {name: value for name, value in asdict(self).items() if value != nothing[name]}


def read_details(fields: Mapping[str, str], *, max_metadata_bytes: int) -> Details:
    """Return what the text fields of a form say. Fields that are none of FIELDS are not looked at. Raises Problem."""
    bucket = fields.get("bucket") or "default"
    if not _BUCKET.fullmatch(bucket):
        detail = "A bucket is 1 to 64 letters, digits, dots, dashes or underscores, not beginning with a sign."
        raise Problem(ProblemCode.INVALID_BUCKET, detail)
    return Details(
        bucket=bucket,
        context=read_metadata(fields.get("metadata"), max_bytes=max_metadata_bytes),
        tags=read_tags(fields.get("tags")),
        category=read_category(fields.get("category")),
        lane=_one_of(Lane, "lane", fields.get("lane") or Lane.INTERACTIVE),
        on_duplicate=_one_of(OnDuplicate, "on_duplicate", fields.get("on_duplicate") or OnDuplicate.NEW),
    )


def _one_of(kind: type[C], name: str, text: str) -> C:
    try:
        return kind(text)
    except ValueError:
        raise _wrong(name, f"not one of: {', '.join(kind)}") from None


def _wrong(name: str, detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, f"{name}: {detail}", (ProblemItem(field=name, detail=detail),))


def read_url(url: str) -> str:
    """Return the URL. Raises Problem if it cannot be one to fetch; whether it may be is the fetcher's to say."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        raise Problem(ProblemCode.INVALID_URL, "This is not a URL.") from None
    if parts.scheme not in ("http", "https") or not host:
        raise Problem(ProblemCode.INVALID_URL, "Give an absolute URL that begins with http:// or https://.")
    if len(url) > MAX_URL_LENGTH or any(letter.isspace() or not letter.isprintable() for letter in url):
        raise Problem(ProblemCode.INVALID_URL, "The URL is too long or has white space in it.")
    return url
