"""Circuit breakers: a dependency that failed five times in a row is left alone for a while, then asked once.

Without one, a dependency that is away costs every call its whole timeout, and its first moments back are spent on
everybody who waited. A breaker is closed (calls pass), open (calls are refused at once) or half-open (one call, the
probe, is under way; what it meets decides). `Breakers` holds those of one process: whoever begins work waits there.
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

Ask = Callable[[], Awaitable[None]]

T = TypeVar("T")

LOOK_S = 0.25  # between looks at a probe that is under way
log = structlog.get_logger(__name__)


class _End:
    """What comes after the last of a walk."""


_END = _End()


class State(Enum):
    """What a breaker does with calls. The values are those of the metric."""

    CLOSED = 0
    HALF_OPEN = 1
    OPEN = 2


@dataclass(frozen=True, slots=True)
class Ticket:
    """One call that was let through. Its end counts only if the breaker has not changed its mind since."""

    epoch: int
    began: float


class Breaker:
    """The breaker of one dependency. Not safe to use from several threads; the clock is monotonic."""

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
        self._due: float | None = None  # half-open before its time: when the next call may be the probe all the same

    @property
    def state(self) -> State:
        """What it does with calls now."""
        return self._state

    def left_s(self) -> float:
        """Return for how many seconds calls are refused, 0 if the next one is let through."""
        return 0.0 if self._state is State.CLOSED else max(0.0, self._until - self._clock())

    @contextmanager
    def passing(self) -> Iterator[None]:
        """Let one call through and learn from its end. Raises DependencyUnavailable at once while calls are refused.

        DependencyUnavailable and TimeoutError are failures, and so is a call cancelled after `slow_s` by its caller's
        timeout. Any other exception is an answer.
        """
        left = self.left_s()
        if left > 0:
            raise DependencyUnavailable(
                f"{self.name} is left alone after failures; the last: {self.last_error}", after_s=left
            )
        yield from self._followed(self._ticket() if self._state is State.CLOSED else self._probe())

    @contextmanager
    def probing(self) -> Iterator[None]:
        """Let a call through whose purpose is to find out. While calls are refused it is the probe; else nobody's."""
        if self._state is State.CLOSED or (self._state is State.HALF_OPEN and self.left_s() > 0):
            yield
            return
        yield from self._followed(self._probe())

    @contextmanager
    def going_on(self) -> Iterator[None]:
        """Let the next step of a call through that was let through before; only its failure is learned from."""
        ticket = self._ticket()
        try:
            yield
        except (DependencyUnavailable, TimeoutError) as error:
            self._failed(ticket, error)
            raise

    async def steps(self, walk: AsyncIterator[T]) -> AsyncIterator[T]:
        """Walk on as one call: its first step may be refused, none after it."""
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
        # While calls are refused, only the probe's end counts: nobody else gets the epoch of this moment.
        return Ticket(self._epoch if self._state is State.CLOSED else -1, self._clock())

    def _probe(self) -> Ticket:
        now = self._clock()
        # A probe that came before its time and fails leaves the time as it was.
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
        """Forget a call whose caller went away: it says nothing. A probe that was dropped is made by the next."""
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
    """The breakers of one process, shown on its health and as metrics."""

    settings: BreakerSettings = field(default_factory=BreakerSettings)
    health: HealthBoard = field(default_factory=HealthBoard)
    clock: Callable[[], float] = time.monotonic
    _all: dict[str, tuple[Breaker, Ask]] = field(default_factory=dict)

    def add(self, name: str, ask: Ask) -> Breaker:
        """Make the breaker of a dependency. `ask` finds out how it does, inside `probing`; it may raise."""
        breaker = Breaker(name, self.settings, clock=self.clock, changed=self._tell)
        self._all[name] = (breaker, ask)
        self._tell(breaker, State.CLOSED)
        return breaker

    def remove(self, name: str) -> None:
        """Forget a dependency that was closed."""
        self._all.pop(name, None)

    def names(self) -> frozenset[str]:
        """Return the dependencies that have a breaker."""
        return frozenset(self._all)

    def states(self) -> dict[str, State]:
        """Return what is done with calls to each dependency."""
        return {name: breaker.state for name, (breaker, _) in self._all.items()}

    def open_reasons(self) -> list[str]:
        """Return, of each dependency that is left alone or being asked, a sentence that may be shown to anybody."""
        return [
            f"{name} is left alone for {breaker.left_s():.0f} s after failures"
            for name, (breaker, _) in self._all.items()
            if breaker.state is not State.CLOSED
        ]

    async def all_closed(self) -> None:
        """Return when no breaker is open. One whose time is over is asked from here, once for all who wait."""
        while (found := self._first_shut()) is not None:
            breaker, ask = found
            if breaker.left_s() == 0:
                try:
                    await ask()
                except Exception as error:  # the breaker has learned what it means
                    log.info("asked a dependency that was left alone", dependency=breaker.name, error=repr(error)[:300])
            else:
                await asyncio.sleep(min(breaker.left_s(), LOOK_S))

    async def keep_probing(self) -> None:
        """Ask for ever, so that a dependency that is back is called back also where no work waits for it."""
        while True:
            await self.all_closed()
            await asyncio.sleep(self.settings.open_s)

    def _first_shut(self) -> tuple[Breaker, Ask] | None:
        return next((pair for pair in self._all.values() if pair[0].state is not State.CLOSED), None)

    def _tell(self, breaker: Breaker, before: State) -> None:
        metrics.BREAKER_STATE.labels(breaker.name).set(breaker.state.value)
        if breaker.state is State.CLOSED:
            self.health.say(breaker.name, Condition.OK)
            if before is not State.CLOSED:
                log.warning("a dependency answers again", dependency=breaker.name)
        elif breaker.state is State.HALF_OPEN:
            self.health.say(breaker.name, Condition.DEGRADED, f"is being asked again after: {breaker.last_error}")
        else:
            detail = f"left alone for {breaker.left_s():.0f} s: {breaker.last_error}"
            self.health.say(breaker.name, Condition.DEGRADED, detail)
            if before is State.CLOSED:
                metrics.BREAKER_OPENED.labels(breaker.name).inc()
                log.error("a dependency is left alone for a while", dependency=breaker.name, error=breaker.last_error)
