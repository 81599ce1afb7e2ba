"""Workers killed with -9 at the worst moments: every image still ends once, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from streams import topics
from tests.support.deployment import deployed, until

AGENTS = ("sanitizer", "resizer", "indexer")


@pytest.mark.parametrize("point", ["before-work", "after-object", "after-produce", "before-commit"])
def test_a_killed_worker_loses_and_doubles_nothing(
    point: str, kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Sanitizer, resizer and indexer, each killed with -9 in its work and started again: one outcome, equal bytes."""
    # The indexer stores no object: there is no such point in its work.
    struck = ("sanitizer", "resizer") if point == "after-object" else ("sanitizer", "resizer", "core")
    with deployed(kafka.bootstrap, tmp_path, agents=AGENTS) as deployment:
        events = {name: deployment.uploaded(data) for name, data in images.items()}
        deployment.publish(topics.UPLOADED, *events.values())
        deployment.start(*struck, strike=f"{point}:2")
        if "core" not in struck:
            deployment.start("core")
        for name in struck:
            deployment.until_killed(name)
            deployment.start(name)
        ids = [event.image_id for event in events.values()]
        deployment.until_ended(ids)
        deployment.until_idle(*AGENTS)
        deployment.check_ended_once(ids)
        if point in {"after-produce", "before-commit"}:
            said = [record.header("ce_id") for record in deployment.records(topics.FACTS)]
            assert len(said) > len(set(said)), "nothing was said twice: the strike hit nothing"
        assert {name: deployment.objects(event.image_id) for name, event in events.items()} == calm
        assert not [letter for agent in AGENTS for letter in deployment.records(topics.dead_topic(agent))]


def test_a_killed_worker_is_replaced_by_its_neighbour(
    kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Of two workers of one agent one is killed with -9 in its work: the other takes over what it had."""
    with deployed(kafka.bootstrap, tmp_path, agents=AGENTS) as deployment:
        deployment.start("core", "resizer", "sanitizer")
        deployment.until_ready(*AGENTS)
        neighbour = deployment.children.pop("sanitizer")
        try:
            deployment.start("sanitizer", strike="before-commit:1")
            second = deployment.children["sanitizer"]
            # Events go on coming until the rebalance has given the second one a partition to die on.
            ids: list[str] = []
            while second.exit_code is None and len(ids) < 200:
                events = {name: deployment.uploaded(data) for name, data in images.items()}
                deployment.publish(topics.UPLOADED, *events.values())
                ids += [event.image_id for event in events.values()]
                until(
                    lambda: second.exit_code is not None or deployment.lag("sanitizer") == 0, "the events being taken"
                )
            deployment.until_killed("sanitizer")
            deployment.until_ended(ids)
        finally:
            neighbour.kill()
        deployment.check_ended_once(ids)
        assert {name: deployment.objects(event.image_id) for name, event in events.items()} == calm
