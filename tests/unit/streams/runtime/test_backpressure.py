"""The gate: while a dependency is unavailable, events wait for it instead of using up their retries."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from schemas.events.envelope import Event
from schemas.events.facts import StageRetrying
from streams import topics
from streams.concurrency.circuit_breaker import Breaker, Breakers, State
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.settings import BreakerSettings, FilesSettings, RetrySettings
from streams.stage import Outcome, Stage, StageSettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import bench, echo_stage, emitted, message, uploaded

AT_ONCE = 4
RETRY = RetrySettings(backoff_s=0.001, in_place_total_s=0.005)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


@dataclass
class Store:
    """A dependency behind a breaker, available or not."""

    settings: BreakerSettings
    unavailable: bool = True
    probes: int = 0
    calls: int = 0
    breakers: Breakers = field(init=False)
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breakers = Breakers(self.settings)
        self.breaker = self.breakers.add("store", self.ask)

    async def ask(self) -> None:
        self.probes += 1
        with self.breaker.probing():
            self._answer()

    def call(self) -> None:
        with self.breaker.passing():
            self.calls += 1
            self._answer()

    def _answer(self) -> None:
        if self.unavailable:
            raise DependencyUnavailable("the store is unavailable")

    def stage(self) -> Stage[Any, Any, Any]:
        def act(event: Event) -> Outcome:
            self.call()
            return emitted(event)

        return echo_stage(act=act)


async def until(true: Callable[[], bool], what: str) -> None:
    async with asyncio.timeout(60):
        while not true():
            await asyncio.sleep(0.005)
    assert true(), what


def delayed(log: MemoryLog) -> int:
    return sum(len(log.records(topics.delay_topic("sanitizer", tier))) for tier in topics.DELAY_TIERS)


def facts(log: MemoryLog) -> int:
    """Return the number of facts; an event that is only delayed has none."""
    return sum(record.header("ce_type") != StageRetrying.type for record in log.records("image.facts"))


def worker(files: FileStore, log: MemoryLog, store: Store) -> tuple[MemoryWorker, Any]:
    stage = store.stage()
    on = bench(stage, files, log, settings=StageSettings(concurrency=AT_ONCE), retry=RETRY, breakers=store.breakers)
    assert not on.fatal
    return MemoryWorker(log, stage.name, [topic.name for topic in stage.consumes], on.intake), on.intake.runner


async def test_an_outage_does_not_send_the_backlog_to_the_delay_topics(files: FileStore) -> None:
    """Only events in flight when the store failed are delayed; the rest of the backlog waits and is then processed."""
    store = Store(BreakerSettings(failures=5, open_s=0.05, gate_s=600))
    log = MemoryLog()
    await log.deliver([message(uploaded()) for _ in range(200)])
    working, _ = worker(files, log, store)
    await until(lambda: store.probes >= 5, "repeated probes of the store")
    made = store.calls
    assert delayed(log) <= 2 * AT_ONCE
    assert made <= 2 * AT_ONCE * RETRY.in_place_tries, "calls were made although the breaker was open"
    store.unavailable = False
    await working.until_idle()
    assert await working.stop()
    assert facts(log) == 200 - delayed(log)
    assert delayed(log) <= 2 * AT_ONCE


async def test_an_event_waits_for_gate_s_at_most(files: FileStore) -> None:
    """After `gate_s` an event is processed anyway, and goes to a delay topic like any failure."""
    store = Store(BreakerSettings(failures=5, open_s=600, gate_s=0.05))
    log = MemoryLog()
    await log.deliver([message(uploaded()) for _ in range(20)])
    working, _ = worker(files, log, store)
    await working.until_idle()
    assert await working.stop()
    assert delayed(log) == 20
    assert store.breaker.state is State.OPEN


async def test_stopping_does_not_wait_for_events_at_the_gate(files: FileStore) -> None:
    """A stopping worker leaves waiting events to the next one: neither acked nor delayed."""
    store = Store(BreakerSettings(failures=5, open_s=600, gate_s=600))
    log = MemoryLog()
    await log.deliver([message(uploaded()) for _ in range(40)])
    working, runner = worker(files, log, store)
    await until(lambda: store.breaker.state is State.OPEN and runner.in_flight() == AT_ONCE, "events at the gate")
    await until(lambda: runner.oldest_s() == 0.0, "no event being processed")
    async with asyncio.timeout(60):
        assert await working.stop(drain_s=600)
    gone = delayed(log)
    assert gone <= 2 * AT_ONCE
    assert sum(log.committed.values()) <= gone
    calm = Store(BreakerSettings(), unavailable=False)
    after, _ = worker(files, log, calm)
    await after.until_idle()
    assert await after.stop()
    assert facts(log) >= 40 - gone
    assert delayed(log) == gone


async def test_waiting_is_not_working(files: FileStore) -> None:
    """Events at the gate are in flight but never overdue, so that the watchdog does not report them as stuck."""
    store = Store(BreakerSettings(failures=1, open_s=600, gate_s=600))
    log = MemoryLog()
    with pytest.raises(DependencyUnavailable):
        store.call()
    await log.deliver([message(uploaded()) for _ in range(40)])
    working, runner = worker(files, log, store)
    await until(lambda: runner.in_flight() == AT_ONCE, "the room being taken")
    await asyncio.sleep(0)
    assert runner.oldest_s() == 0.0
    assert store.calls == 1
    await working.stop()


async def test_a_closed_breaker_delays_nothing(files: FileStore) -> None:
    """With closed breakers the gate makes no probe and delays no event."""
    store = Store(BreakerSettings(), unavailable=False)
    log = MemoryLog()
    await log.deliver([message(uploaded()) for _ in range(40)])
    working, _ = worker(files, log, store)
    await working.until_idle()
    assert await working.stop()
    assert (store.probes, delayed(log), facts(log)) == (0, 0, 40)
