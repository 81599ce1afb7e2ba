"""How long delayed events wait when clocks jump: never longer than their topic's delay, and not one after the other."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from streams.retries.delay_router import Waits

DELAY_S = 30.0


class World:
    """A partition of delayed events, its router, and two clocks of which one may be set."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.wall = 1.7e9
        self.waits = Waits(clock=lambda: self.wall, monotonic=lambda: self.now)
        self.queue: deque[tuple[int, float, float]] = deque()  # offset, due, monotonic time of arrival
        self.waited: dict[int, float] = {}
        self._next = 0

    def arrive(self, sender_ahead_s: float = 0.0) -> None:
        self.queue.append((self._next, self.wall + sender_ahead_s + DELAY_S, self.now))
        self._next += 1

    def turn(self) -> float:
        """Let go on who may; return for how long the next one waits."""
        while self.queue:
            offset, due, arrived = self.queue[0]
            if (left := self.waits.left_s("p", offset, due, DELAY_S)) > 0:
                return left
            self.waited[offset] = self.now - arrived
            self.queue.popleft()
        return 1.0

    def pass_s(self, seconds: float) -> None:
        """Let time pass, looking as often as the router does."""
        until = self.now + seconds
        while self.now < until:
            step = min(max(self.turn(), 0.01), 0.5, until - self.now)
            self.now += step
            self.wall += step
        self.turn()


def test_an_event_waits_until_it_is_due() -> None:
    """Without any jump an event goes on when its time has come, and not before."""
    world = World()
    world.arrive()
    world.pass_s(DELAY_S - 1)
    assert world.queue
    world.pass_s(1)
    assert world.waited == {0: DELAY_S}


def test_a_clock_set_back_strands_nothing() -> None:
    """After the clock was set back by an hour, events that wait go on as if it had not been."""
    world = World()
    for _ in range(100):
        world.arrive()
        world.pass_s(0.1)
    world.wall -= 3600
    world.pass_s(2 * DELAY_S)
    assert not world.queue
    assert max(world.waited.values()) <= DELAY_S + 1


def test_a_router_that_starts_with_a_late_clock_strands_nothing() -> None:
    """Where only the router's clock is behind, events wait for their topic's delay once, all of them together."""
    world = World()
    for _ in range(200):
        world.arrive(sender_ahead_s=86_400)
    world.pass_s(DELAY_S + 1)
    assert len(world.waited) == 200


def test_a_clock_that_ran_ahead_for_a_while_is_forgotten() -> None:
    """When a clock that was ahead is right again, later events wait for their delay as before."""
    world = World()
    world.wall += 3600
    world.arrive()
    world.pass_s(DELAY_S + 1)
    world.wall -= 3600
    world.pass_s(DELAY_S + 1)
    world.arrive()
    world.pass_s(2 * DELAY_S)
    assert world.waited[1] >= DELAY_S - 1


def test_a_place_that_was_given_away_is_forgotten() -> None:
    """A partition that comes back begins anew: its first event waits again, within the delay."""
    world = World()
    world.arrive()
    world.pass_s(5)
    world.waits.keep(set())
    world.wall -= 3600
    assert world.waits.left_s("p", 0, world.queue[0][1], DELAY_S) == DELAY_S


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
    """However clocks jump, an event goes on within its delay of being the first of its partition, in order."""
    world = World()
    for what, amount in steps:
        if what == "arrive":
            world.arrive(sender_ahead_s=amount)
        elif what == "pass":
            world.pass_s(abs(amount) % 40)
        else:
            world.wall += amount
    waiting = len(world.queue)
    world.pass_s((waiting + 1) * (DELAY_S + 1))
    assert not world.queue
    assert list(world.waited) == sorted(world.waited)
