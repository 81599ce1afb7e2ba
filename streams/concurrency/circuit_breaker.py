"""Circuit breakers: after five failures in a row, calls to a dependency fail at once until a probe succeeds.

Without one, an unavailable dependency costs every call its whole timeout, and all waiting calls reach it at once when
it recovers. A breaker is closed (calls pass), open (calls are refused at once) or half-open (one call, the probe, is
in progress; its result closes or reopens the breaker). `Breakers` contains those of one process.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

import structlog

from streams.errors import DependencyUnavailable
from streams.settings import BreakerSettings
from streams.telemetry import metrics
from streams.telemetry.health_board import Condition, HealthBoard

Probe = Callable[[], Awaitable[None]]

T = TypeVar("T")

POLL_S = 0.25  # between checks of a probe in progress
log = structlog.get_logger(__name__)


class _End:
    """Marks the end of an iterator."""


_END = _End()


class State(Enum):
    """State of a breaker. The values are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Ticket:
    """One call that passed. Its result counts only if the breaker has not changed state since."""

    epoch: int
    began: float


class Breaker:
    """The breaker of one dependency. Not thread-safe; the clock is monotonic."""

    def __init__(
        self,
        name: str,
        settings: BreakerSettings,
        *,
        clock: Callable[[], float] = time.monotonic,
        changed: Callable[[Breaker, State], None] = lambda _breaker, _before: None,
    ) -> None:
        self.name = name
        self.last_error = ""
        self._settings = settings
        self._clock = clock
        self._changed = changed
        self._state = State.CLOSED
        self._epoch = 0
        self._failures = 0
        self._until = 0.0  # open: when the next call may be the probe; half-open: when the probe counts as lost
        self._due: float | None = None  # set by an early probe: when the next probe is due if this one fails

    @property
    def state(self) -> State:
        """Current state."""
        return self._state

    def left_s(self) -> float:
        """Return for how many more seconds calls are refused, 0 if the next one passes."""
        return 0.0 if self._state is State.CLOSED else max(0.0, self._until - self._clock())

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Pass one call and record its result. Raises DependencyUnavailable at once while calls are refused.

        DependencyUnavailable, TimeoutError and a cancellation after `slow_s` count as failures; any other exception
        counts as an answer.
        """
        left = self.left_s()
        if left > 0:
            raise DependencyUnavailable(
                f"{self.name}: circuit breaker open; last error: {self.last_error}", after_s=left
            )
        yield from self._followed(self._ticket() if self._state is State.CLOSED else self._probe())

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Pass a health check. While the breaker is open its result counts as the probe's; otherwise it is ignored."""
        if self._state is State.CLOSED or (self._state is State.HALF_OPEN and self.left_s() > 0):
            yield
            return
        yield from self._followed(self._probe())

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Pass the next step of a call that already passed; only its failure is recorded."""
        ticket = self._ticket()
        try:
            yield
        except (DependencyUnavailable, TimeoutError) as error:
            self._failed(ticket, error)
            raise

    async def steps(self, walk: AsyncIterator[T]) -> AsyncIterator[T]:
        """Iterate as one call: only the first step may be refused."""
        try:
            with self.passing():
                item = await anext(walk, _END)
            while not isinstance(item, _End):
                yield item
                with self.going_on():
                    item = await anext(walk, _END)
        finally:
            if isinstance(walk, AsyncGenerator):
                await walk.aclose()

    def _followed(self, ticket: Ticket) -> Iterator[None]:
        try:
            yield
        except (DependencyUnavailable, TimeoutError) as error:
            self._failed(ticket, error)
            raise
        except asyncio.CancelledError as error:
            if self._clock() - ticket.began >= self._settings.slow_s:
                self._failed(ticket, error)
            else:
                self._dropped(ticket)
            raise
        except Exception:
            self._succeeded(ticket)
            raise
        except BaseException:
            self._dropped(ticket)
            raise
        self._succeeded(ticket)

    def _ticket(self) -> Ticket:
        # While the breaker is not closed only the probe's result counts, so other calls get an invalid epoch.
        return Ticket(self._epoch if self._state is State.CLOSED else -1, self._clock())

    def _probe(self) -> Ticket:
        now = self._clock()
        # An early probe that fails must not postpone the next one.
        self._due = self._until if self._state is State.OPEN and now < self._until else None
        self._epoch += 1
        self._move(State.HALF_OPEN, now + self._settings.open_s)
        return Ticket(self._epoch, now)

    def _succeeded(self, ticket: Ticket) -> None:
        if ticket.epoch != self._epoch:
            return
        self._failures = 0
        if self._state is State.HALF_OPEN:
            self._epoch += 1
            self._move(State.CLOSED, 0.0)

    def _failed(self, ticket: Ticket, error: BaseException) -> None:
        if ticket.epoch != self._epoch:
            return
        self.last_error = (str(error) or type(error).__name__)[:300]
        self._failures += 1
        if self._state is State.HALF_OPEN or self._failures >= self._settings.failures:
            again = self._clock() + self._settings.open_s
            self._open(self._due if self._state is State.HALF_OPEN and self._due is not None else again)

    def _dropped(self, ticket: Ticket) -> None:
        """Ignore a call whose caller was cancelled; after a cancelled probe the next call is the probe."""
        if ticket.epoch == self._epoch and self._state is State.HALF_OPEN:
            self._open(self._clock() if self._due is None else self._due)

    def _open(self, until: float) -> None:
        self._epoch += 1
        self._failures = 0
        self._move(State.OPEN, until)

    def _move(self, state: State, until: float) -> None:
        before, self._state, self._until = self._state, state, until
        self._changed(self, before)


@dataclass(slots=True)
class Breakers:
    """The breakers of one process, reported on its health board and as metrics."""

    settings: BreakerSettings = field(default_factory=BreakerSettings)
    health: HealthBoard = field(default_factory=HealthBoard)
    clock: Callable[[], float] = time.monotonic
    _all: dict[str, tuple[Breaker, Probe]] = field(default_factory=dict)

    def add(self, name: str, probe: Probe) -> Breaker:
        """Create the breaker of a dependency. `probe` calls the dependency inside `probing`; it may raise."""
        breaker = Breaker(name, self.settings, clock=self.clock, changed=self._report)
        self._all[name] = (breaker, probe)
        self._report(breaker, State.CLOSED)
        return breaker

    def remove(self, name: str) -> None:
        """Remove the breaker of a dependency."""
        self._all.pop(name, None)

    def names(self) -> frozenset[str]:
        """Return the names of all breakers."""
        return frozenset(self._all)

    def states(self) -> dict[str, State]:
        """Return the state of each breaker by name."""
        return {name: breaker.state for name, (breaker, _) in self._all.items()}

    def open_reasons(self) -> list[str]:
        """Return a public sentence for each breaker that is not closed."""
        return [
            f"{name}: circuit breaker open for {breaker.left_s():.0f} s"
            for name, (breaker, _) in self._all.items()
            if breaker.state is not State.CLOSED
        ]

    async def all_closed(self) -> None:
        """Wait until every breaker is closed, probing each when its time has passed, once for all waiters."""
        while (found := self._first_open()) is not None:
            breaker, probe = found
            if breaker.left_s() == 0:
                try:
                    await probe()
                except Exception as error:  # recorded by the breaker
                    log.info("circuit breaker probe failed", dependency=breaker.name, error=repr(error)[:300])
            else:
                await asyncio.sleep(min(breaker.left_s(), POLL_S))

    async def keep_probing(self) -> None:
        """Probe open breakers until cancelled, so that they also close in an idle process."""
        while True:
            await self.all_closed()
            await asyncio.sleep(self.settings.open_s)

    def _first_open(self) -> tuple[Breaker, Probe] | None:
        return next((pair for pair in self._all.values() if pair[0].state is not State.CLOSED), None)

    def _report(self, breaker: Breaker, before: State) -> None:
        metrics.BREAKER_STATE.labels(breaker.name).set(breaker.state.value)
        if breaker.state is State.CLOSED:
            self.health.say(breaker.name, Condition.OK)
            if before is not State.CLOSED:
                log.warning("circuit breaker closed", dependency=breaker.name)
        elif breaker.state is State.HALF_OPEN:
            self.health.say(breaker.name, Condition.DEGRADED, f"probing after: {breaker.last_error}")
        else:
            detail = f"circuit breaker open for {breaker.left_s():.0f} s: {breaker.last_error}"
            self.health.say(breaker.name, Condition.DEGRADED, detail)
            if before is State.CLOSED:
                metrics.BREAKER_OPENED.labels(breaker.name).inc()
                log.error("circuit breaker opened", dependency=breaker.name, error=breaker.last_error)
