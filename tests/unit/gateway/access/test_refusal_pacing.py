"""Pacing of refusals: a burst at once, then a steady rate, each with a bounded wait."""

from __future__ import annotations

import pytest

from gateway.access.refusal_pacing import BURST, LONGEST_S, RATE, RefusalPacing


class Time:
    """A clock, and the waits that were asked for."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.waits: list[float] = []

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def pacing(time: Time) -> RefusalPacing:
    return RefusalPacing(clock=lambda: time.now, sleep=time.sleep)


async def test_a_burst_is_refused_at_once(pacing: RefusalPacing, time: Time) -> None:
    """BURST refusals do not wait, and again after a quiet second."""
    for _ in range(2):
        for _ in range(BURST):
            await pacing.wait()
        time.now += BURST / RATE
    assert not time.waits


async def test_refusals_beyond_the_burst_are_spread(pacing: RefusalPacing, time: Time) -> None:
    """The next refusals are answered at RATE, none more than LONGEST_S later."""
    for _ in range(BURST):
        await pacing.wait()
    for _ in range(1000):
        await pacing.wait()
    assert time.waits[:3] == pytest.approx([1 / RATE, 2 / RATE, 3 / RATE])
    assert time.waits == sorted(time.waits)
    assert time.waits[-1] == pytest.approx(LONGEST_S)


async def test_the_schedule_recovers(pacing: RefusalPacing, time: Time) -> None:
    """After any number of refusals, a refusal is immediate again when LONGEST_S and the burst have passed."""
    for _ in range(10_000):
        await pacing.wait()
    time.waits.clear()
    time.now += LONGEST_S + BURST / RATE
    await pacing.wait()
    assert not time.waits
