"""The bulk lane: a killed router loses nothing of it, and single uploads overtake it."""

from __future__ import annotations

from pathlib import Path

from infra.local.kafka import LocalKafka
from streams import topics
from streams.kafka.messages import in_bulk
from streams.topics import LANE_TARGET_HEADER, SCHEDULER, UPLOADED
from tests.support.deployment import Deployment, deployed, message_of, until

AGENTS = ("sanitizer", "resizer", "indexer")
ROUNDS = 6  # of the images


def _released(deployment: Deployment) -> list[str]:
    """Return the images released from the bulk lane, in order, repeats included."""
    found = [r for r in deployment.records(UPLOADED) if r.header(LANE_TARGET_HEADER) is not None]
    return [record.header("ce_subject") or "" for record in found]


def test_a_killed_router_loses_nothing_of_the_bulk_lane(
    kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """A router killed during a bulk import is restarted, and every image completes, once."""
    with deployed(kafka.bootstrap, tmp_path) as deployment:
        named = [(name, deployment.uploaded(data)) for _ in range(ROUNDS) for name, data in images.items()]
        ids = [event.image_id for _, event in named]
        deployment.produce(in_bulk(message_of(UPLOADED, event)) for _, event in named)
        deployment.start("core", "sanitizer", "resizer", "router")
        until(lambda: len(_released(deployment)) >= 3, "the first images being released")
        deployment.children.pop("router").kill()
        assert len(set(_released(deployment))) < len(ids), "all images were released before the kill"
        deployment.start("router")
        deployment.until_ended(ids)
        deployment.until_idle(*AGENTS, SCHEDULER)
        deployment.check_ended_once(ids)
        assert set(_released(deployment)) == set(ids)
        for name, event in named:
            assert deployment.objects(event.image_id) == calm[name]
        assert not [letter for agent in (*AGENTS, SCHEDULER) for letter in deployment.records(topics.dead_topic(agent))]
        assert deployment.terminate("router") == 0


def test_a_single_upload_overtakes_the_bulk_lane(kafka: LocalKafka, images: dict[str, bytes], tmp_path: Path) -> None:
    """An image uploaded after a bulk import completes before most of the import is released."""
    with deployed(kafka.bootstrap, tmp_path) as deployment:
        data = next(iter(images.values()))
        events = [deployment.uploaded(data) for _ in range(300)]
        deployment.produce(in_bulk(message_of(UPLOADED, event)) for event in events)
        deployment.start("core", "sanitizer", "resizer", "router")
        until(lambda: bool(_released(deployment)), "the first images being released")
        single = deployment.uploaded(data)
        deployment.publish(UPLOADED, single)
        deployment.until_ended([single.image_id])
        assert len(set(_released(deployment))) < len(events), "the whole import was released"
