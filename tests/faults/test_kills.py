"""Workers killed with SIGKILL at each critical point: every image ends once, with the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from streams import topics
from tests.support.deployment import deployed, until

pytestmark = pytest.mark.lengthy

AGENTS = ("sanitizer", "resizer", "indexer")


@pytest.mark.parametrize("point", ["before-work", "after-object", "after-produce", "before-commit"])
def test_a_killed_worker_loses_and_duplicates_nothing(
    point: str, kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Sanitizer, resizer and indexer, each killed during work and restarted: one outcome, equal bytes."""
    # The indexer stores no object, so it has no such point.
    killed = ("sanitizer", "resizer") if point == "after-object" else ("sanitizer", "resizer", "core")
    with deployed(kafka.bootstrap, tmp_path, agents=AGENTS) as deployment:
        events = {name: deployment.uploaded(data) for name, data in images.items()}
        deployment.publish(topics.UPLOADED, *events.values())
        deployment.start(*killed, strike=f"{point}:2")
        if "core" not in killed:
            deployment.start("core")
        for name in killed:
            deployment.until_killed(name)
            deployment.start(name)
        ids = [event.image_id for event in events.values()]
        deployment.until_ended(ids)
        deployment.until_idle(*AGENTS)
        deployment.check_ended_once(ids)
        if point in {"after-produce", "before-commit"}:
            ids_of_facts = [record.header("ce_id") for record in deployment.records(topics.FACTS)]
            assert len(ids_of_facts) > len(set(ids_of_facts)), (
                "no fact was emitted twice: no worker was killed at the point"
            )
        assert {name: deployment.objects(event.image_id) for name, event in events.items()} == calm
        assert not [letter for agent in AGENTS for letter in deployment.records(topics.dead_topic(agent))]


def test_the_other_worker_takes_over_from_a_killed_one(
    kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Of two workers of an agent one is killed during work: the other takes over its events."""
    with deployed(kafka.bootstrap, tmp_path, agents=AGENTS) as deployment:
        deployment.start("core", "resizer", "sanitizer")
        deployment.until_ready(*AGENTS)
        other = deployment.children.pop("sanitizer")
        try:
            deployment.start("sanitizer", strike="before-commit:1")
            second = deployment.children["sanitizer"]
            # Produce events until the rebalance has assigned a partition to the second worker.
            ids: list[str] = []
            while second.exit_code is None and len(ids) < 200:
                events = {name: deployment.uploaded(data) for name, data in images.items()}
                deployment.publish(topics.UPLOADED, *events.values())
                ids += [event.image_id for event in events.values()]
                until(
                    lambda: second.exit_code is not None or deployment.lag("sanitizer") == 0,
                    "the events being processed",
                )
            deployment.until_killed("sanitizer")
            deployment.until_ended(ids)
        finally:
            other.kill()
        deployment.check_ended_once(ids)
        assert {name: deployment.objects(event.image_id) for name, event in events.items()} == calm
