"""Waits of delayed events when clocks jump: at most their topic's delay, and not one after the other."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from streams.retries.delay_router import DelayTimer

DELAY_S = 30.0


class Partition:
    """A partition of delayed events, its timer, a monotonic clock and a wall clock that tests set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1.7e9
        self.timer = DelayTimer(clock=lambda: self.wall, monotonic=lambda: self.now)
        self.queue: deque[tuple[int, float, float]] = deque()  # offset, due, monotonic time of arrival
        self.waited: dict[int, float] = {}
        self._next = 0

    def arrive(self, sender_ahead_s: float = 0.0) -> None:
        self.queue.append((self._next, self.wall + sender_ahead_s + DELAY_S, self.now))
        self._next += 1

    def forward(self) -> float:
        """Forward every due event; return how long the next one waits."""
        while self.queue:
            offset, due, arrived = self.queue[0]
            if (left := self.timer.left_s("p", offset, due, DELAY_S)) > 0:
                return left
            self.waited[offset] = self.now - arrived
            self.queue.popleft()
        return 1.0

    def pass_s(self, seconds: float) -> None:
        """Advance both clocks, polling as often as the router does."""
        end = self.now + seconds
        while self.now < end:
            step = min(max(self.forward(), 0.01), 0.5, end - self.now)
            self.now += step
            self.wall += step
        self.forward()


def test_an_event_waits_until_it_is_due() -> None:
    """Without a jump, an event is forwarded when it is due, and not before."""
    partition = Partition()
    partition.arrive()
    partition.pass_s(DELAY_S - 1)
    assert partition.queue
    partition.pass_s(1)
    assert partition.waited == {0: DELAY_S}


def test_a_clock_set_back_delays_no_event() -> None:
    """After the wall clock is set back by an hour, waiting events are forwarded on time."""
    partition = Partition()
    for _ in range(100):
        partition.arrive()
        partition.pass_s(0.1)
    partition.wall -= 3600
    partition.pass_s(2 * DELAY_S)
    assert not partition.queue
    assert max(partition.waited.values()) <= DELAY_S + 1


def test_events_from_a_clock_ahead_wait_together() -> None:
    """If the router's clock is behind the sender's, all events wait one delay, at the same time."""
    partition = Partition()
    for _ in range(200):
        partition.arrive(sender_ahead_s=86_400)
    partition.pass_s(DELAY_S + 1)
    assert len(partition.waited) == 200


def test_the_offset_of_a_corrected_clock_expires() -> None:
    """After a clock that was ahead is corrected, later events wait their full delay."""
    partition = Partition()
    partition.wall += 3600
    partition.arrive()
    partition.pass_s(DELAY_S + 1)
    partition.wall -= 3600
    partition.pass_s(DELAY_S + 1)
    partition.arrive()
    partition.pass_s(2 * DELAY_S)
    assert partition.waited[1] >= DELAY_S - 1


def test_a_revoked_partition_is_dropped() -> None:
    """A partition that is assigned again starts without state: its first event waits at most the delay."""
    partition = Partition()
    partition.arrive()
    partition.pass_s(5)
    partition.timer.keep(set())
    partition.wall -= 3600
    assert partition.timer.left_s("p", 0, partition.queue[0][1], DELAY_S) == DELAY_S


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["arrive", "pass", "jump"]),
            st.floats(min_value=-7200, max_value=7200, allow_nan=False),
        ),
        max_size=40,
    )
)
def test_no_event_waits_longer_than_its_delay_after_those_before_it(steps: list[tuple[str, float]]) -> None:
    """For any clock jumps, an event is forwarded within its delay of being the first of its partition, in order."""
    partition = Partition()
    for what, amount in steps:
        if what == "arrive":
            partition.arrive(sender_ahead_s=amount)
        elif what == "pass":
            partition.pass_s(abs(amount) % 40)
        else:
            partition.wall += amount
    waiting = len(partition.queue)
    partition.pass_s((waiting + 1) * (DELAY_S + 1))
    assert not partition.queue
    assert list(partition.waited) == sorted(partition.waited)
