"""Times in requests: RFC 3339 with an offset."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode, ProblemItem

_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:)(\d\d)(\.\d{1,12})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def read_time(text: str | None, field: str) -> datetime | None:
    """Return a time in UTC, None for None. A leap second becomes the second before it. Raises Problem."""
    if text is None:
        return None
    found = _RFC_3339.fullmatch(text)
    if found is None:
        raise _invalid(field)
    day, minutes, seconds, fraction, offset = found.groups("")
    try:
        parsed = datetime.fromisoformat(
            f"{day}T{minutes}{'59' if seconds == '60' else seconds}{fraction[:7]}{offset.upper()}"
        )
        return parsed.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _invalid(field) from None


def _invalid(field: str) -> Problem:
    detail = "Send an RFC 3339 time with an offset, for example 2026-01-31T12:00:00Z (in a URL, + is written %2B)."
    return Problem(ProblemCode.INVALID_FIELD, f"{field}: {detail}", (ProblemItem(field=field, detail=detail),))
