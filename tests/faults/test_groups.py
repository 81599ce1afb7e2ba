"""Workers that freeze, wake, join and leave: partitions change hands in mid-work, and nothing comes of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from infra.local.kafka import LocalKafka
from streams import topics
from tests.support.deployment import Deployment, deployed, until
from tests.support.sent_images import LIGHT_AGENTS, Calm, Sent

JOINS = 4


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the light agents at work, one of each; the sanitizers are slow enough to be met in mid-work."""
    slow = {"DARKROOM_SANITIZER__CONCURRENCY": "1", "DARKROOM_SANITIZER__BUFFER": "4"}
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("groups"), agents=LIGHT_AGENTS, settings=slow) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        deployment.until_ready(*LIGHT_AGENTS)
        yield deployment


def test_a_zombie_that_wakes_changes_nothing(deployment: Deployment, images: dict[str, bytes], calm: Calm) -> None:
    """A worker stopped past its session while at work is replaced; awake again, it does no harm and works on."""
    sent = Sent(deployment, images)
    before = len(deployment.records(topics.SANITIZED))
    sent.send(times=6)
    until(lambda: len(deployment.records(topics.SANITIZED)) > before, "the first image being sanitized")
    zombie = deployment.children["zombie"] = deployment.children.pop("sanitizer")
    zombie.signal(signal.SIGSTOP)
    assert deployment.lag("sanitizer") > 0, "all was over before the worker froze"
    deployment.start("sanitizer#2")
    sent.check(calm)
    zombie.signal(signal.SIGCONT)
    # It either notices and joins again, or its watchdog ends it; then it is started again, as by any supervisor.
    deployment.children["sanitizer"] = deployment.children.pop("zombie")
    deployment.supervised = True
    deployment.until_ready("sanitizer", members=2)
    deployment.supervised = False
    sent.send(times=2)
    sent.check(calm)
    assert deployment.terminate("sanitizer#2") == 0


def test_a_rebalance_storm_loses_nothing(deployment: Deployment, images: dict[str, bytes], calm: Calm) -> None:
    """Workers that join and leave all the time, told to or killed with -9, neither lose nor double an image."""
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
    """Wait for its own word that it joined: the group still counts a member that was killed a moment ago."""
    until(lambda: "partitions assigned" in deployment.log_file(name).read_text(), f"{name} joining")
