"""SIGTERM during work: started events are finished and committed, the others stay for the next worker."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from infra.local.kafka import LocalKafka
from schemas.events.facts import ObjectsDetected
from streams import topics
from tests.support.deployment import WITH_OBJECTS, deployed, until

COUNT = 48
BATCH = 4


def _pictures() -> list[bytes]:
    found = []
    for number in range(COUNT):
        stream = io.BytesIO()
        Image.new("RGB", (320, 240), (number * 5, 128, 255 - number * 5)).save(stream, "PNG")
        found.append(stream.getvalue())
    return found


def test_sigterm_during_a_batch_drains(kafka: LocalKafka, models_dir: Path, models_cache: Path, tmp_path: Path) -> None:
    """On SIGTERM during a batch a detector finishes and commits it, exits 0, and leaves the rest to the next worker."""
    agents = ("sanitizer", "detector", "indexer")
    settings = {
        "DARKROOM_MODELS__DIR": str(models_dir),
        "DARKROOM_MODELS__CACHE": str(models_cache),
        "DARKROOM_DETECTOR__BATCH_SIZE": str(BATCH),
        "DARKROOM_DETECTOR__CONCURRENCY": str(BATCH),
        "DARKROOM_DETECTOR__BUFFER": "4",
    }
    with deployed(kafka.bootstrap, tmp_path, agents=agents, settings=settings) as deployment:
        events = [deployment.uploaded(data, profile=WITH_OBJECTS) for data in _pictures()]
        deployment.publish(topics.UPLOADED, *events)
        deployment.start("sanitizer", "core")
        until(lambda: len(deployment.records(topics.SANITIZED)) == COUNT, "all images being sanitized")
        deployment.start("detector")

        def detected() -> list[str | None]:
            facts = deployment.records(topics.FACTS)
            return [f.header("ce_subject") for f in facts if f.header("ce_type") == ObjectsDetected.type]

        until(lambda: len(detected()) > 0, "the first batch")
        assert deployment.terminate("detector") == 0
        done = detected()
        assert len(done) == len(set(done))
        assert len(done) < COUNT, "all images were detected before the signal"
        assert deployment.lag("detector") == COUNT - len(done), "exactly the finished events are committed"
        deployment.start("detector")
        ids = [event.image_id for event in events]
        deployment.until_ended(ids)
        deployment.until_idle(*agents)
        deployment.check_ended_once(ids)
        assert sorted(map(str, detected())) == sorted(ids), "no image was detected twice"
        assert deployment.terminate("core") == 0
        assert deployment.terminate("sanitizer") == 0
