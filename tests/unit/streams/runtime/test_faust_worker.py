"""Settings a worker rejects, and what it derives from them."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from agents import pipeline
from schemas.values import STAGES
from streams.errors import NotReady
from streams.runtime.faust_worker import Subscription, check_faust, poll_interval_s
from streams.settings import BreakerSettings, RetrySettings, WorkerSettings
from streams.stage import StageSettings


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
