"""The circuit breaker: what opens it, what closes it, and that it never makes more than one probe."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractContextManager

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from streams.concurrency.circuit_breaker import Breaker, Breakers, State
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import ObjectMissing
from streams.settings import BreakerSettings
from streams.telemetry import metrics
from streams.telemetry.health_board import Condition, HealthBoard

SETTINGS = BreakerSettings(failures=5, open_s=30, slow_s=5)


class Clock:
    """A monotonic clock that tests advance."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def fail(breaker: Breaker, times: int = 1) -> None:
    for _ in range(times):
        with pytest.raises(DependencyUnavailable, match="down"), breaker.passing():
            raise DependencyUnavailable("down")


def state(breaker: Breaker) -> State:
    return breaker.state


def made(clock: Clock) -> Breaker:
    return Breaker("store", SETTINGS, clock=clock)


def opened(clock: Clock) -> Breaker:
    breaker = made(clock)
    fail(breaker, 5)
    return breaker


def test_five_failures_in_a_row_open_it() -> None:
    """Four failures and an answer do not open it; five in a row do, and refused calls state for how long."""
    clock = Clock()
    breaker = made(clock)
    fail(breaker, 4)
    with breaker.passing():
        pass
    fail(breaker, 4)
    assert state(breaker) is State.CLOSED
    fail(breaker)
    clock.now += 10
    with pytest.raises(DependencyUnavailable, match="down") as refused, breaker.passing():
        pytest.fail("a call passed")
    assert refused.value.after_s == pytest.approx(20)


@pytest.mark.parametrize("answer", [ObjectMissing("k"), ValueError("no"), KeyError("k")])
def test_an_answer_is_no_failure(answer: Exception) -> None:
    """A missing object or a rejected request is an answer: it never opens the breaker, and resets the failure count."""
    breaker = made(Clock())
    fail(breaker, 4)
    with pytest.raises(type(answer)), breaker.passing():
        raise answer
    fail(breaker, 4)
    assert state(breaker) is State.CLOSED


def test_timeouts_are_failures() -> None:
    """A timeout counts, and so does a cancellation after `slow_s`, but not an earlier one."""
    clock = Clock()
    breaker = made(clock)
    for _ in range(2):
        with pytest.raises(TimeoutError), breaker.passing():
            raise TimeoutError
    for seconds in (1, 4.9, 5, 6, 60):
        with pytest.raises(asyncio.CancelledError), breaker.passing():
            clock.now += seconds
            raise asyncio.CancelledError
    assert state(breaker) is State.OPEN


def test_one_probe_decides() -> None:
    """After `open_s` exactly one call passes; its answer closes the breaker, its failure reopens it."""
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    with breaker.passing():
        assert state(breaker) is State.HALF_OPEN
        with pytest.raises(DependencyUnavailable), breaker.passing():
            pytest.fail("a second call passed during the probe")
    assert state(breaker) is State.CLOSED
    breaker = opened(clock)
    clock.now += 30
    fail(breaker)
    assert (breaker.state, breaker.left_s()) == (State.OPEN, 30)


def test_a_cancelled_or_lost_probe_is_made_by_the_next_call() -> None:
    """After a cancelled probe, or one without a result for `open_s`, the next call is the probe."""
    clock = Clock()
    breaker = opened(clock)
    clock.now += 30
    with pytest.raises(asyncio.CancelledError), breaker.passing():
        raise asyncio.CancelledError
    lost = breaker.passing()
    lost.__enter__()
    clock.now += 30
    with breaker.passing():
        pass
    assert state(breaker) is State.CLOSED
    lost.__exit__(DependencyUnavailable, DependencyUnavailable("late"), None)
    assert state(breaker) is State.CLOSED


def test_calls_from_before_a_change_do_not_count() -> None:
    """Calls in progress when the breaker opened neither close nor reopen it."""
    clock = Clock()
    breaker = made(clock)
    good, bad = breaker.passing(), breaker.passing()
    good.__enter__()
    bad.__enter__()
    fail(breaker, 5)
    good.__exit__(None, None, None)
    assert state(breaker) is State.OPEN
    clock.now += 30
    with breaker.passing():
        bad.__exit__(DependencyUnavailable, DependencyUnavailable("late"), None)
    assert state(breaker) is State.CLOSED


def test_a_health_check_passes_and_counts_as_a_probe() -> None:
    """A health check passes an open breaker: its answer closes it, its failure does not postpone the next probe."""
    clock = Clock()
    breaker = opened(clock)
    clock.now += 10
    with pytest.raises(DependencyUnavailable), breaker.probing():
        raise DependencyUnavailable("still down")
    assert breaker.left_s() == pytest.approx(20)
    with breaker.probing():
        pass
    assert state(breaker) is State.CLOSED
    for _ in range(9):
        with pytest.raises(DependencyUnavailable), breaker.probing():
            raise DependencyUnavailable("health checks alone do not open it")
    assert state(breaker) is State.CLOSED


async def test_a_stream_counts_as_one_call() -> None:
    """A stream is refused only at its start; an error in the middle counts as a failure."""
    clock = Clock()
    breaker = made(clock)

    async def numbers(breaks: bool) -> AsyncIterator[int]:
        yield 1
        yield 2
        if breaks:
            raise DependencyUnavailable("down")

    for _ in range(4):
        with pytest.raises(DependencyUnavailable):
            assert [n async for n in breaker.steps(numbers(breaks=True))]
    # The first step of each succeeded, which resets the failure count.
    assert state(breaker) is State.CLOSED
    stream = breaker.steps(numbers(breaks=False))
    assert await anext(stream) == 1
    fail(breaker, 5)
    assert [n async for n in stream] == [2]
    with pytest.raises(DependencyUnavailable):
        await anext(breaker.steps(numbers(breaks=False)))
    assert state(breaker) is State.OPEN


async def test_health_and_metrics_report_an_open_breaker() -> None:
    """An open breaker degrades the process and names its last error; openings are counted."""
    clock, board = Clock(), HealthBoard()

    async def nothing() -> None:
        return

    breakers = Breakers(SETTINGS, board, clock)
    before = metrics.BREAKER_OPENED.labels("store")._value.get()
    breaker = breakers.add("store", nothing)
    assert board.condition() is Condition.OK
    fail(breaker, 5)
    assert board.condition() is Condition.DEGRADED
    assert board.snapshot()["store"]["detail"] == "circuit breaker open for 30 s: down"
    assert board.degraded(without=breakers.names()) is None
    assert breakers.open_reasons() == ["store: circuit breaker open for 30 s"]
    assert metrics.BREAKER_STATE.labels("store")._value.get() == State.OPEN.value
    clock.now += 30
    fail(breaker)
    with breaker.probing():
        pass
    assert (board.condition(), breakers.open_reasons()) == (Condition.OK, [])
    assert metrics.BREAKER_STATE.labels("store")._value.get() == 0
    assert metrics.BREAKER_OPENED.labels("store")._value.get() == before + 1


async def test_all_waiters_share_one_probe() -> None:
    """With any number of waiters one probe is made per `open_s`, until it succeeds."""
    probes = 0

    async def probe() -> None:
        nonlocal probes
        with breaker.probing():
            probes += 1
            await asyncio.sleep(0.02)
            if probes < 3:
                raise DependencyUnavailable("still down")

    breakers = Breakers(BreakerSettings(failures=1, open_s=0.05))
    breaker = breakers.add("store", probe)
    fail(breaker)
    await asyncio.wait_for(asyncio.gather(*(breakers.all_closed() for _ in range(20))), 60)
    assert probes == 3
    assert state(breaker) is State.CLOSED


async def test_a_breaker_closes_in_an_idle_process() -> None:
    """In an idle process an open breaker closes by itself when the dependency recovers."""
    unavailable = True

    async def probe() -> None:
        with breaker.probing():
            if unavailable:
                raise DependencyUnavailable("still down")

    breakers = Breakers(BreakerSettings(failures=1, open_s=0.02))
    breaker = breakers.add("store", probe)
    probing = asyncio.create_task(breakers.keep_probing())
    for _ in range(2):
        fail(breaker)
        unavailable = False
        async with asyncio.timeout(60):
            while state(breaker) is not State.CLOSED:
                await asyncio.sleep(0.005)
    probing.cancel()


class Machine(RuleBasedStateMachine):
    """Calls that start and end in any order, checked against the breaker's guarantees."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.breaker = made(self.clock)
        self.calls: list[AbstractContextManager[None]] = []

    @rule(seconds=st.floats(min_value=0, max_value=45))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def begin(self) -> None:
        left, before = self.breaker.left_s(), state(self.breaker)
        call = self.breaker.passing()
        try:
            call.__enter__()
        except DependencyUnavailable as refused:
            assert before is not State.CLOSED
            assert refused.after_s == left > 0
            return
        assert before is State.CLOSED or left == 0
        assert before is State.CLOSED or state(self.breaker) is State.HALF_OPEN
        self.calls.append(call)

    @precondition(lambda self: self.calls)
    @rule(data=st.data(), how=st.sampled_from(["answers", "fails", "is missing", "is given up"]))
    def end(self, data: st.DataObject, how: str) -> None:
        call = self.calls.pop(data.draw(st.integers(0, len(self.calls) - 1)))
        error: BaseException | None = {
            "answers": None,
            "fails": DependencyUnavailable("down"),
            "is missing": ObjectMissing("k"),
            "is given up": asyncio.CancelledError(),
        }[how]
        before = self.breaker.state
        assert not call.__exit__(type(error) if error else None, error, None)
        if before is State.OPEN:
            assert self.breaker.state is State.OPEN, "an earlier call changed the state, not the probe"
        if before is State.CLOSED and how != "fails":
            assert self.breaker.state in (State.CLOSED, State.OPEN if how == "is given up" else State.CLOSED)

    @invariant()
    def it_is_never_open_for_longer_than_open_s(self) -> None:
        assert 0 <= self.breaker.left_s() <= SETTINGS.open_s
        assert self.breaker.state is not State.CLOSED or self.breaker.left_s() == 0


def test_calls_in_any_order_keep_the_guarantees() -> None:
    """For calls that start and end in any order: refused only while open, at most one probe, never stuck open."""
    run_state_machine_as_test(
        Machine, settings=hypothesis_settings(max_examples=60, stateful_step_count=40, deadline=None)
    )
