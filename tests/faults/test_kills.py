"""Workers killed with -9 at the worst moments: every image still ends once, as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from streams import topics
from tests.support.plant import planted, until

AGENTS = ("sanitizer", "resizer", "indexer")


@pytest.mark.parametrize("point", ["before-work", "after-object", "after-produce", "before-commit"])
def test_a_killed_worker_loses_and_doubles_nothing(
    point: str, kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Sanitizer, resizer and indexer, each killed with -9 in its work and started again: one outcome, equal bytes."""
    # The indexer stores no object: there is no such point in its work.
    struck = ("sanitizer", "resizer") if point == "after-object" else ("sanitizer", "resizer", "core")
    with planted(kafka.bootstrap, tmp_path, agents=AGENTS) as plant:
        events = {name: plant.uploaded(data) for name, data in images.items()}
        plant.say(topics.UPLOADED, *events.values())
        plant.start(*struck, strike=f"{point}:2")
        if "core" not in struck:
            plant.start("core")
        for name in struck:
            plant.until_killed(name)
            plant.start(name)
        ids = [event.image_id for event in events.values()]
        plant.until_ended(ids)
        plant.until_idle(*AGENTS)
        plant.check_ended_once(ids)
        if point in {"after-produce", "before-commit"}:
            said = [record.header("ce_id") for record in plant.records(topics.FACTS)]
            assert len(said) > len(set(said)), "nothing was said twice: the strike hit nothing"
        assert {name: plant.objects(event.image_id) for name, event in events.items()} == calm
        assert not [letter for agent in AGENTS for letter in plant.records(topics.dead_topic(agent))]


def test_a_killed_worker_is_replaced_by_its_neighbour(
    kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """Of two workers of one agent one is killed with -9 in its work: the other takes over what it had."""
    with planted(kafka.bootstrap, tmp_path, agents=AGENTS) as plant:
        plant.start("core", "resizer", "sanitizer")
        plant.until_ready(*AGENTS)
        neighbour = plant.children.pop("sanitizer")
        try:
            plant.start("sanitizer", strike="before-commit:1")
            second = plant.children["sanitizer"]
            # Events go on coming until the rebalance has given the second one a partition to die on.
            ids: list[str] = []
            while second.exit_code is None and len(ids) < 200:
                events = {name: plant.uploaded(data) for name, data in images.items()}
                plant.say(topics.UPLOADED, *events.values())
                ids += [event.image_id for event in events.values()]
                until(lambda: second.exit_code is not None or plant.lag("sanitizer") == 0, "the events being taken")
            plant.until_killed("sanitizer")
            plant.until_ended(ids)
        finally:
            neighbour.kill()
        plant.check_ended_once(ids)
        assert {name: plant.objects(event.image_id) for name, event in events.items()} == calm
