"""Settings a worker rejects, and what it derives from them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from faust.types import TP

from agents import pipeline
from schemas.values import STAGES
from streams.errors import NotReady
from streams.object_store.factory import open_files
from streams.runtime.faust_worker import FaustWorker, Subscription, check_faust, poll_interval_s
from streams.settings import BreakerSettings, FilesSettings, KafkaSettings, RetrySettings, WorkerSettings
from streams.stage import StageSettings
from streams.telemetry.health_board import HealthBoard
from streams.testing.memory_log import MemoryLog
from tests.support.stage_kit import bench, echo_stage

PLACE = TP("image.uploaded", 0)
STUCK_S = 120


def subscription(**settings: Any) -> Subscription:
    return Subscription.of("sanitizer", (), StageSettings(**settings), RetrySettings(), BreakerSettings())


def test_the_installed_faust_is_the_verified_version() -> None:
    """The acks were verified with one version and its compiled loop; any other is rejected."""
    check_faust()


@pytest.mark.parametrize("name", STAGES)
def test_every_agent_s_defaults_fit_the_poll_interval(name: str) -> None:
    """With default settings no agent is removed from its group while it works."""
    stage = pipeline.stage(name)
    found = Subscription.of(name, stage.consumes, stage.settings(), RetrySettings(), BreakerSettings())
    assert poll_interval_s(found, WorkerSettings()) >= WorkerSettings().max_poll_interval_s


def test_a_slow_stage_gets_a_longer_poll_interval() -> None:
    """The interval is twice the worst-case time of all events fetched ahead."""
    found = subscription(concurrency=1, buffer=8, deadline_s=60)
    assert poll_interval_s(found, WorkerSettings()) == 2 * 2 * 8 * 63


def test_waiting_for_a_dependency_is_part_of_the_poll_interval() -> None:
    """The wait at the gate counts where it is longer than the deadline."""
    found = subscription(concurrency=1, buffer=8, deadline_s=10)
    assert poll_interval_s(found, WorkerSettings()) == 2 * 2 * 8 * (BreakerSettings().gate_s + 3)


def test_a_backlog_of_more_than_an_hour_is_rejected_by_name() -> None:
    """Settings that could delay a rebalance by an hour are rejected, naming the variables to lower."""
    with pytest.raises(NotReady, match="DARKROOM_SANITIZER__BUFFER"):
        poll_interval_s(subscription(concurrency=1, buffer=4096, deadline_s=60), WorkerSettings())


@pytest.mark.parametrize(
    ("variable", "value"),
    [("DARKROOM_KAFKA__PARTITIONS", "none"), ("DARKROOM_RESIZER__CONCURRENCY", "0"), ("DARKROOM_KAFKA__NONSENSE", "1")],
)
def test_a_wrong_setting_exits_2_and_names_its_variable(variable: str, value: str) -> None:
    """A process exits 2 on an invalid setting and names the variable."""
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", "agent", "resizer"],
        env={**os.environ, variable: value},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert variable in done.stderr


@dataclass
class Consumer:
    """What lag is computed from: the end of one partition and the offset committed there."""

    end: int = 0
    _committed_offset: dict[TP, int] = field(default_factory=lambda: {PLACE: 0})

    def assignment(self) -> set[TP]:
        return {PLACE}

    def highwater(self, _place: TP) -> int:
        return self.end

    def commit(self) -> None:
        """Commit everything."""
        self._committed_offset[PLACE] = self.end


class Stream:
    """A stream of Faust that delivers one event."""

    def noack(self) -> Stream:
        return self

    async def events(self) -> AsyncIterator[object]:
        yield object()


@dataclass
class App:
    """Faust's app with that consumer, and the time."""

    consumer: Consumer = field(default_factory=Consumer)
    rebalancing: bool = False
    seconds: float = 1000.0


class Watched(FaustWorker):
    """A worker without Kafka, on a clock of its own, whose events are taken at once."""

    async def fetch(self) -> None:
        """Fetch one event."""
        await self._loop(Stream())

    async def _take(self, stream: Any, event: Any) -> bool:
        return True

    def check_for(self, seconds: int) -> list[str]:
        """Check once a second, as the watchdog does; return the problems found."""
        found: list[str] = []
        for _ in range(seconds):
            self.app.seconds += 1
            if problem := self.stuck():
                found.append(problem)
        return found


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    """A worker with one partition that is empty."""
    app = App()
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        intake = bench(echo_stage(), files, MemoryLog()).intake
        worker = Watched(
            subscription(),
            intake,
            kafka=KafkaSettings(),
            worker=WorkerSettings(stuck_fetch_s=STUCK_S),
            health=HealthBoard(),
            clock=lambda: app.seconds,
        )
        worker.app = app
        yield worker


async def test_the_first_event_after_a_quiet_time_is_not_a_hang(watched: Watched) -> None:
    """Lag counts from when it appeared, not from the last event: an idle worker has its whole time to fetch."""
    assert watched.check_for(10 * STUCK_S) == []
    watched.app.consumer.end = 1
    assert watched.check_for(STUCK_S) == []
    (problem,) = watched.check_for(1)
    assert problem == f"lag of 1 events, but none fetched for {STUCK_S} s"


async def test_lag_that_was_made_up_meanwhile_is_not_a_hang(watched: Watched) -> None:
    """A fetched event, a commit, a rebalance or an unknown lag start the time again."""
    watched.app.consumer.end = 5
    assert watched.check_for(STUCK_S - 1) == []
    watched.app.seconds += 0.5
    await watched.fetch()
    assert watched.check_for(STUCK_S - 1) == []
    watched.app.consumer.commit()
    assert watched.check_for(1) == []
    watched.app.consumer.end = 6
    assert watched.check_for(STUCK_S - 1) == []
    watched.app.rebalancing = True
    assert watched.check_for(1) == []
    watched.app.rebalancing = False
    assert watched.check_for(STUCK_S - 1) == []
    watched.app.consumer.highwater = lambda _place: 1 / 0
    assert watched.check_for(1) == []
    del watched.app.consumer.highwater
    assert watched.check_for(STUCK_S) == []
    assert len(watched.check_for(1)) == 1


async def test_work_in_flight_is_not_a_hang(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """While an event is in flight nothing need be fetched, and the time starts after it."""
    watched.app.consumer.end = 1
    monkeypatch.setattr(watched._intake.runner, "in_flight", lambda: 1)
    assert watched.check_for(3 * STUCK_S) == []
    monkeypatch.undo()
    assert watched.check_for(STUCK_S) == []
    assert len(watched.check_for(1)) == 1
