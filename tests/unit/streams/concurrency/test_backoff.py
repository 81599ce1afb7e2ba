"""Pauses between attempts."""

from __future__ import annotations

from streams.concurrency.backoff import Backoff


def test_pauses_double_up_to_a_limit() -> None:
    """The first attempt is due at once; the pause after each failure is twice the one before."""
    now = 0.0
    backoff = Backoff(5.0, 30.0, clock=lambda: now)
    assert backoff.is_due()
    assert backoff.failed() == 5.0
    assert not backoff.is_due()
    now += 5.0
    assert backoff.is_due()
    assert [backoff.failed() for _ in range(3)] == [10.0, 20.0, 30.0]
    assert [backoff.failed() for _ in range(2000)] == [30.0] * 2000
