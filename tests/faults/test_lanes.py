"""The bulk lane, its router killed with -9: everything in it still ends once, and single uploads pass it by."""

from __future__ import annotations

from pathlib import Path

from infra.local.kafka import LocalKafka
from streams import topics
from streams.kafka.messages import in_bulk
from streams.topics import LANE_TARGET_HEADER, SCHEDULER, UPLOADED
from tests.support.plant import Plant, planted, said, until

AGENTS = ("sanitizer", "resizer", "indexer")
ROUNDS = 6  # of the images


def _let_in(plant: Plant) -> list[str]:
    """Return the images let in from the bulk lane, in their order, repeats included."""
    found = [r for r in plant.records(UPLOADED) if r.header(LANE_TARGET_HEADER) is not None]
    return [record.header("ce_subject") or "" for record in found]


def test_a_killed_router_loses_nothing_of_the_bulk_lane(
    kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """A router killed with -9 in the middle of a bulk import is started again, and every image is completed, once."""
    with planted(kafka.bootstrap, tmp_path) as plant:
        named = [(name, plant.uploaded(data)) for _ in range(ROUNDS) for name, data in images.items()]
        ids = [event.image_id for _, event in named]
        plant.produce(in_bulk(said(UPLOADED, event)) for _, event in named)
        plant.start("core", "sanitizer", "resizer", "router")
        until(lambda: len(_let_in(plant)) >= 3, "the first images being let in")
        plant.children.pop("router").kill()
        assert len(set(_let_in(plant))) < len(ids), "it was killed too late to show anything"
        plant.start("router")
        plant.until_ended(ids)
        plant.until_idle(*AGENTS, SCHEDULER)
        plant.check_ended_once(ids)
        assert set(_let_in(plant)) == set(ids)
        for name, event in named:
            assert plant.objects(event.image_id) == calm[name]
        assert not [letter for agent in (*AGENTS, SCHEDULER) for letter in plant.records(topics.dead_topic(agent))]
        assert plant.terminate("router") == 0


def test_a_single_upload_passes_the_bulk_lane_by(kafka: LocalKafka, images: dict[str, bytes], tmp_path: Path) -> None:
    """With a bulk import waiting, an image uploaded after all of it is completed before most of it is let in."""
    with planted(kafka.bootstrap, tmp_path) as plant:
        data = next(iter(images.values()))
        events = [plant.uploaded(data) for _ in range(300)]
        plant.produce(in_bulk(said(UPLOADED, event)) for event in events)
        plant.start("core", "sanitizer", "resizer", "router")
        until(lambda: bool(_let_in(plant)), "the first images being let in")
        single = plant.uploaded(data)
        plant.say(UPLOADED, single)
        plant.until_ended([single.image_id])
        assert len(set(_let_in(plant))) < len(events), "nothing waited any more"
