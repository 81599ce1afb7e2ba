"""Workers that are suspended, resume, join and leave: rebalances during work lose and duplicate nothing."""

from __future__ import annotations

import fcntl
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from streams import topics
from tests.support.deployment import Deployment, deployed, until
from tests.support.forked_process import ForkedChild
from tests.support.sent_images import LIGHT_AGENTS, Calm, Sent

pytestmark = pytest.mark.lengthy

JOINS = 4


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the running light agents, one of each, with sanitizers slow enough to be suspended during work."""
    slow = {"DARKROOM_SANITIZER__CONCURRENCY": "1", "DARKROOM_SANITIZER__BUFFER": "4"}
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("groups"), agents=LIGHT_AGENTS, settings=slow) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        deployment.until_ready(*LIGHT_AGENTS)
        yield deployment


def test_a_resumed_zombie_changes_nothing(deployment: Deployment, images: dict[str, bytes], calm: Calm) -> None:
    """A worker suspended past its session timeout is replaced; resumed, it does no harm and rejoins."""
    sent = Sent(deployment, images)
    before = len(deployment.records(topics.SANITIZED))
    sent.send(times=6)
    until(lambda: len(deployment.records(topics.SANITIZED)) > before, "the first image being sanitized")
    zombie = deployment.children["zombie"] = deployment.children.pop("sanitizer")
    _suspend(zombie, deployment.files.directory / deployment.files.bucket / "lock")
    assert deployment.lag("sanitizer") > 0, "all images ended before the worker was suspended"
    deployment.start("sanitizer#2")
    sent.check(calm)
    zombie.signal(signal.SIGCONT)
    # It rejoins the group, or its watchdog ends it and it is restarted as by a supervisor.
    deployment.children["sanitizer"] = deployment.children.pop("zombie")
    deployment.supervised = True
    deployment.until_ready("sanitizer", members=2)
    deployment.supervised = False
    sent.send(times=2)
    sent.check(calm)
    assert deployment.terminate("sanitizer#2") == 0


def _suspend(worker: ForkedChild, lock: Path) -> None:
    """Suspend a worker at a moment when it does not hold the lock of the folder store, which would stop all writers."""
    while True:
        worker.signal(signal.SIGSTOP)
        with lock.open("ab") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:  # this worker's, or another's for a moment
                worker.signal(signal.SIGCONT)
                time.sleep(0.01)
            else:
                return


def test_a_rebalance_storm_loses_nothing(deployment: Deployment, images: dict[str, bytes], calm: Calm) -> None:
    """Workers that join and leave repeatedly, by SIGTERM or SIGKILL, neither lose nor duplicate an image."""
    sent = Sent(deployment, images)
    for number in range(JOINS):
        joining = [f"{agent}#{number + 3}" for agent in ("sanitizer", "resizer")]
        deployment.start(*joining)
        sent.send()
        for name in joining:
            _until_joined(deployment, name)
        sent.send()
        for name in joining:
            if number % 2:
                deployment.children.pop(name).kill()
            else:
                assert deployment.terminate(name) == 0
        sent.send()
    sent.check(calm)


def _until_joined(deployment: Deployment, name: str) -> None:
    """Wait for the worker's own log: the group may still count a member that was just killed."""
    until(lambda: "partitions assigned" in deployment.log_file(name).read_text(), f"{name} joining")
