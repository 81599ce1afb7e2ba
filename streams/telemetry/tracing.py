"""W3C Trace Context (https://www.w3.org/TR/trace-context/): one trace per image, one span per event."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

_TRACEPARENT = re.compile(r"^00-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})$")


# Ids are no secrets: the system's generator would cost a system call for each event. A generator of its own, because a
# library may seed the shared one; seeded again in a forked process.
_IDS = random.Random()  # noqa: S311
os.register_at_fork(after_in_child=_IDS.seed)


def new_traceparent() -> str:
    """Start a trace."""
    return f"00-{_identifier(128):032x}-{_identifier(64):016x}-01"


def _identifier(bits: int) -> int:
    return _IDS.getrandbits(bits) or 1  # zero is invalid


def child_of(traceparent: str | None) -> str:
    """Return a new span in the given trace, or a new trace if there is none or it is malformed."""
    trace = trace_id(traceparent)
    return f"00-{trace}-{_identifier(64):016x}-01" if trace else new_traceparent()


def trace_id(traceparent: str | None) -> str | None:
    """Return the 32 hex digits of the trace id, None when malformed."""
    found = _TRACEPARENT.match(traceparent or "")
    return found.group(1) if found else None


@dataclass(frozen=True, slots=True)
class Origin:
    """Origin of the current event: its trace, its first position in the log, and its timestamp there."""

    trace_id: str | None
    topic: str
    partition: str
    offset: str
    taken_ms: int  # unix milliseconds; 0 = unknown


_CURRENT: ContextVar[Origin | None] = ContextVar("origin of the current event", default=None)


@contextmanager
def origin_scope(origin: Origin) -> Iterator[None]:
    """Set the origin of the current event for the code that processes it."""
    token = _CURRENT.set(origin)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def current_origin() -> Origin | None:
    """Return the origin of the current event; None outside of event processing."""
    return _CURRENT.get()
