"""Workers that freeze, wake, join and leave: partitions change hands in mid-work, and nothing comes of it."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from infra.local.kafka import LocalKafka
from streams import topics
from tests.support.plant import Plant, planted, until
from tests.support.sent_images import LIGHT_AGENTS, Calm, Sent

JOINS = 4


@pytest.fixture(scope="module")
def plant(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Return the light agents at work, one of each; the sanitizers are slow enough to be met in mid-work."""
    slow = {"DARKROOM_SANITIZER__CONCURRENCY": "1", "DARKROOM_SANITIZER__BUFFER": "4"}
    with planted(kafka.bootstrap, tmp_path_factory.mktemp("groups"), agents=LIGHT_AGENTS, settings=slow) as plant:
        plant.start("sanitizer", "resizer", "core")
        plant.until_ready(*LIGHT_AGENTS)
        yield plant


def test_a_zombie_that_wakes_changes_nothing(plant: Plant, images: dict[str, bytes], calm: Calm) -> None:
    """A worker stopped past its session while at work is replaced; awake again, it does no harm and works on."""
    sent = Sent(plant, images)
    before = len(plant.records(topics.SANITIZED))
    sent.send(times=6)
    until(lambda: len(plant.records(topics.SANITIZED)) > before, "the first image being sanitized")
    zombie = plant.children["zombie"] = plant.children.pop("sanitizer")
    zombie.signal(signal.SIGSTOP)
    assert plant.lag("sanitizer") > 0, "all was over before the worker froze"
    plant.start("sanitizer#2")
    sent.check(calm)
    zombie.signal(signal.SIGCONT)
    # It either notices and joins again, or its watchdog ends it; then it is started again, as by any supervisor.
    plant.children["sanitizer"] = plant.children.pop("zombie")
    plant.supervised = True
    plant.until_ready("sanitizer", members=2)
    plant.supervised = False
    sent.send(times=2)
    sent.check(calm)
    assert plant.terminate("sanitizer#2") == 0


def test_a_rebalance_storm_loses_nothing(plant: Plant, images: dict[str, bytes], calm: Calm) -> None:
    """Workers that join and leave all the time, told to or killed with -9, neither lose nor double an image."""
    sent = Sent(plant, images)
    for number in range(JOINS):
        joining = [f"{agent}#{number + 3}" for agent in ("sanitizer", "resizer")]
        plant.start(*joining)
        sent.send()
        for name in joining:
            _until_joined(plant, name)
        sent.send()
        for name in joining:
            if number % 2:
                plant.children.pop(name).kill()
            else:
                assert plant.terminate(name) == 0
        sent.send()
    sent.check(calm)


def _until_joined(plant: Plant, name: str) -> None:
    """Wait for its own word that it joined: the group still counts a member that was killed a moment ago."""
    until(lambda: "partitions assigned" in plant.log_file(name).read_text(), f"{name} joining")
