"""Trace ids: valid W3C values, one trace per image."""

from __future__ import annotations

import random

import pytest

from streams.telemetry import tracing
from streams.telemetry.tracing import child_of, new_traceparent, trace_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def test_a_span_of_a_trace_keeps_its_id_and_has_its_own() -> None:
    """Every event of an image has the image's trace and a span of its own."""
    parent = f"00-{TRACE}-00f067aa0ba902b7-01"
    spans = {child_of(parent) for _ in range(100)}
    assert len(spans) == 100
    assert {trace_id(span) for span in spans} == {TRACE}


@pytest.mark.parametrize("malformed", [None, "", f"00-{'0' * 32}-00f067aa0ba902b7-01", f"00-{TRACE}-1-01"])
def test_a_malformed_parent_begins_a_trace(malformed: str | None) -> None:
    """Without a usable parent there is a new trace."""
    assert trace_id(child_of(malformed)) not in (None, trace_id(child_of(malformed)))


def test_ids_do_not_depend_on_the_shared_random_numbers() -> None:
    """A library that seeds Python's generator does not make workers use the same ids."""
    state, found = random.getstate(), set()
    for _ in range(3):
        random.seed(1)
        found.add(new_traceparent())
    random.setstate(state)
    assert len(found) == 3


def test_an_id_is_never_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero is invalid as the id of a trace and of a span."""
    monkeypatch.setattr(tracing._IDS, "getrandbits", lambda _bits: 0)
    assert trace_id(new_traceparent()) == f"{1:032x}"
