"""Times in requests: RFC 3339, with the offset it asks for."""

from __future__ import annotations

import re
from datetime import UTC, datetime

from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode, ProblemItem

_RFC_3339 = re.compile(r"(\d{4}-\d\d-\d\d)[Tt](\d\d:\d\d:)(\d\d)(\.\d{1,12})?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def read_time(text: str | None, field: str) -> datetime | None:
    """Return a time in UTC, None for none. Raises Problem. A leap second is the second before it."""
    if text is None:
        return None
    found = _RFC_3339.fullmatch(text)
    if found is None:
        raise _refused(field)
    day, minutes, seconds, fraction, offset = found.groups("")
    try:
        said = datetime.fromisoformat(
            f"{day}T{minutes}{'59' if seconds == '60' else seconds}{fraction[:7]}{offset.upper()}"
        )
        return said.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _refused(field) from None


def _refused(field: str) -> Problem:
    detail = "Give a time as RFC 3339 has it, with an offset: 2026-01-31T12:00:00Z (in a URL a + is written %2B)."
    return Problem(ProblemCode.INVALID_FIELD, f"{field}: {detail}", (ProblemItem(field=field, detail=detail),))
