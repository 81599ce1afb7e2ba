"""The bulk lane, its router killed with -9: everything in it still ends once, and single uploads pass it by."""

from __future__ import annotations

from pathlib import Path

from infra.local.kafka import LocalKafka
from streams import topics
from streams.kafka.messages import in_bulk
from streams.topics import LANE_TARGET_HEADER, SCHEDULER, UPLOADED
from tests.support.deployment import Deployment, deployed, message_of, until

AGENTS = ("sanitizer", "resizer", "indexer")
ROUNDS = 6  # of the images


def _let_in(deployment: Deployment) -> list[str]:
    """Return the images let in from the bulk lane, in their order, repeats included."""
    found = [r for r in deployment.records(UPLOADED) if r.header(LANE_TARGET_HEADER) is not None]
    return [record.header("ce_subject") or "" for record in found]


def test_a_killed_router_loses_nothing_of_the_bulk_lane(
    kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """A router killed with -9 in the middle of a bulk import is started again, and every image is completed, once."""
    with deployed(kafka.bootstrap, tmp_path) as deployment:
        named = [(name, deployment.uploaded(data)) for _ in range(ROUNDS) for name, data in images.items()]
        ids = [event.image_id for _, event in named]
        deployment.produce(in_bulk(message_of(UPLOADED, event)) for _, event in named)
        deployment.start("core", "sanitizer", "resizer", "router")
        until(lambda: len(_let_in(deployment)) >= 3, "the first images being let in")
        deployment.children.pop("router").kill()
        assert len(set(_let_in(deployment))) < len(ids), "it was killed too late to show anything"
        deployment.start("router")
        deployment.until_ended(ids)
        deployment.until_idle(*AGENTS, SCHEDULER)
        deployment.check_ended_once(ids)
        assert set(_let_in(deployment)) == set(ids)
        for name, event in named:
            assert deployment.objects(event.image_id) == calm[name]
        assert not [letter for agent in (*AGENTS, SCHEDULER) for letter in deployment.records(topics.dead_topic(agent))]
        assert deployment.terminate("router") == 0


def test_a_single_upload_passes_the_bulk_lane_by(kafka: LocalKafka, images: dict[str, bytes], tmp_path: Path) -> None:
    """With a bulk import waiting, an image uploaded after all of it is completed before most of it is let in."""
    with deployed(kafka.bootstrap, tmp_path) as deployment:
        data = next(iter(images.values()))
        events = [deployment.uploaded(data) for _ in range(300)]
        deployment.produce(in_bulk(message_of(UPLOADED, event)) for event in events)
        deployment.start("core", "sanitizer", "resizer", "router")
        until(lambda: bool(_let_in(deployment)), "the first images being let in")
        single = deployment.uploaded(data)
        deployment.publish(UPLOADED, single)
        deployment.until_ended([single.image_id])
        assert len(set(_let_in(deployment))) < len(events), "nothing waited any more"
