"""Tags and categories as clients send them with an image: in a form, a header or a query."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import TypeAdapter, ValidationError

from gateway.problems import Problem
from schemas.annotations import MAX_TAGS, MAX_WORD, Category, Tag
from schemas.http_api import ProblemCode, ProblemItem

_TAG: TypeAdapter[str] = TypeAdapter(Tag)
_CATEGORY: TypeAdapter[str] = TypeAdapter(Category)


def read_tags(given: str | Iterable[str] | None, *, field: str = "tags") -> tuple[str, ...]:
    """Return tags, each once, in the order given: comma separated, or several such texts. Raises Problem."""
    texts = [given or ""] if given is None or isinstance(given, str) else given
    tags = tuple(dict.fromkeys(tag.strip() for text in texts for tag in text.split(",") if tag.strip()))
    if len(tags) > MAX_TAGS:
        raise _refused(field, f"An image has {MAX_TAGS} tags at most.")
    try:
        return tuple(_TAG.validate_python(tag) for tag in tags)
    except ValidationError:
        detail = f"A tag has 1 to {MAX_WORD} characters, none of them a control character."
        raise _refused(field, detail) from None


def read_category(given: str | None, *, field: str = "category") -> str | None:
    """Return a category, None for none. Raises Problem."""
    if given is None or not given.strip():
        return None
    try:
        return _CATEGORY.validate_python(given.strip())
    except ValidationError:
        detail = f"A category has 1 to {MAX_WORD} characters, none of them a comma or a control character."
        raise _refused(field, detail) from None


def _refused(field: str, detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_FIELD, f"{field}: {detail}", (ProblemItem(field=field, detail=detail),))
