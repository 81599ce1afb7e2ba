"""Lets requests to sources through: within each source's budget, interval and concurrency, without delaying others.

A request that must wait a moment waits here; one that must wait longer, or for which too many wait already, is
postponed: its event goes through a delay topic, so that requests to other sources pass.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from agents.fetching.source_rules import SourceRule, share_of
from schemas.events.intake import FetchPriority
from schemas.values import ErrorCode
from streams.errors import Postponed, Retryable
from streams.object_store.source_budgets import Budget, SourceBudgets, Wait


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Limits of what waits in a process, and the window of budgets."""

    window_s: float
    grace_s: float  # seconds within which a request leaves after it was taken from the budget
    hold_s: float  # the longest wait in the process
    held: int  # requests of all sources that may wait in the process
    held_of_one: int  # of one source


@dataclass(frozen=True, slots=True)
class Permit:
    """The right to send one request until a time."""

    sent_before: float  # unix seconds
    clock: Callable[[], float]

    def check(self) -> None:
        """Raise Retryable if the request is late: it would be counted in another window than it was taken from."""
        if self.clock() > self.sent_before:
            raise Retryable("the request could not be sent in time", code=ErrorCode.SOURCE_UNAVAILABLE)


class _Source:
    """One source in this process: who is inside, and who wants to be."""

    def __init__(self, concurrency: int) -> None:
        self.slots = asyncio.Semaphore(concurrency)
        self.users = 0


class SourceGate:
    """The gate of one process. Budgets are exact across processes; concurrency is one process's."""

    def __init__(
        self, budgets: SourceBudgets, settings: GateSettings, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._budgets = budgets
        self._settings = settings
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        self._waiting: Counter[str] = Counter()
        self._held = 0

    @asynccontextmanager
    async def pass_through(self, source: str, rule: SourceRule, priority: FetchPriority) -> AsyncIterator[Permit]:
        """Admit one request, for as long as the block runs. Raises Postponed, DependencyUnavailable."""
        assert rule.concurrency is not None  # noqa: S101 - SourceRules.of returns complete rules
        entry = self._sources.setdefault(source, _Source(rule.concurrency))
        entry.users += 1
        try:
            await self._enter(source, entry)
            try:
                yield await self._taken(source, rule, priority)
            finally:
                entry.slots.release()
        finally:
            entry.users -= 1
            if not entry.users:
                del self._sources[source]

    async def block(self, source: str, seconds: float) -> None:
        """Let no request go to a source for so many seconds."""
        await self._budgets.block(source, self._clock() + seconds)

    @asynccontextmanager
    async def holding(self, source: str) -> AsyncIterator[None]:
        """Count a request to a source as waiting in this process. Raises Postponed if too many wait."""
        if self._held >= self._settings.held or self._waiting[source] >= self._settings.held_of_one:
            raise Postponed(f"{source} is busy", after_s=0)
        self._waiting[source] += 1
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
            self._waiting[source] -= 1
            if not self._waiting[source]:
                del self._waiting[source]

    async def _enter(self, source: str, entry: _Source) -> None:
        if not entry.slots.locked():
            await entry.slots.acquire()
            return
        try:
            async with self.holding(source), asyncio.timeout(self._settings.hold_s):
                await entry.slots.acquire()
        except TimeoutError:
            raise Postponed(f"{source} is busy", after_s=0) from None

    async def _taken(self, source: str, rule: SourceRule, priority: FetchPriority) -> Permit:
        assert rule.requests is not None and rule.interval_s is not None  # noqa: S101 - as above
        limits = self._settings
        # A request may reach the source so much later than it was taken: the window is as much longer.
        window_s = limits.window_s + limits.grace_s
        budget = Budget(share_of(rule.requests, priority), window_s, rule.interval_s)
        deadline = time.monotonic() + limits.hold_s
        while isinstance(taken := await self._budgets.take(source, budget), Wait):
            if taken.seconds > deadline - time.monotonic():
                raise Postponed(f"the budget of {source} is spent", after_s=taken.seconds)
            async with self.holding(source):
                await asyncio.sleep(taken.seconds)
        return Permit(taken + limits.grace_s, self._clock)
