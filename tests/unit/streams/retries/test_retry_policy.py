"""Retry policy."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from schemas.events.envelope import Record
from streams.retries.retry_policy import Delay, RetryPolicy, number_header
from streams.settings import RetrySettings

POLICY = RetryPolicy(RetrySettings(), chance=lambda: 1.0)


@given(tries=st.integers(1, 10), elapsed=st.floats(0, 10), after=st.none() | st.floats(0, 100))
def test_tries_in_place_never_exceed_their_number_and_time(tries: int, elapsed: float, after: float | None) -> None:
    """For any Retry-After, at most three attempts within three seconds are made in place."""
    pause = POLICY.pause_in_place(tries, elapsed, after)
    if pause is not None:
        assert tries < 3
        assert elapsed + pause <= 3.0
        assert after is None or pause >= after


def test_pauses_grow() -> None:
    """Each pause is longer than the one before."""
    first, second = POLICY.pause_in_place(1, 0, None), POLICY.pause_in_place(2, 0, None)
    assert first is not None
    assert second is not None
    assert second > first


def test_delays_come_in_order_and_end() -> None:
    """30 s, 5 min, 30 min, nothing."""
    assert [POLICY.next_delay(passed, None) for passed in range(4)] == [
        Delay("30s", 30.0),
        Delay("5m", 300.0),
        Delay("30m", 1800.0),
        None,
    ]


def test_a_request_longer_than_every_delay_gets_the_longest() -> None:
    """A Retry-After of a day does not dead-letter the event at once."""
    assert POLICY.next_delay(0, 86_400) == Delay("30m", 1800.0)


@given(st.binary(max_size=12))
def test_a_number_header_is_a_small_number_for_any_bytes(value: bytes) -> None:
    """Header values are untrusted."""
    found = number_header(Record("t", 0, 0, None, None, (("n", value),)), "n")
    assert 0 <= found < 1_000_000
