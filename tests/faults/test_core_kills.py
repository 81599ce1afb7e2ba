"""SIGKILL of the core, which has the read model open and indexes what Kafka has: every fact is there afterwards, once.

DARKROOM_KILLS=50 repeats it 50 times.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from schemas.values import DEFAULT_OWNER, new_image_id
from streams import topics
from streams.settings import QdrantSettings
from tests.faults.read_model_checks import check_facts, opened
from tests.faults.read_model_writer import facts_of
from tests.support.deployment import KILLED, deployed, until

KILLS = int(os.environ.get("DARKROOM_KILLS", "3"))
IMAGES_PER_KILL = 150  # more than the core indexes before it is killed
LONGEST_S = 1.0  # from the first fact that a core has indexed to its end
OWNER = str(DEFAULT_OWNER)
START_S = 90  # of a core: Kafka waits for the killed one until its session times out

pytestmark = [pytest.mark.lengthy, pytest.mark.timeout(240 + KILLS * START_S)]
CHANCE = random.Random(os.environ.get("DARKROOM_SEED", "7"))


def test_facts_in_kafka_survive_kills_of_the_core(kafka: LocalKafka, tmp_path: Path) -> None:
    """Killed at random moments while it indexes, the core ends with every fact of the log recorded once."""
    images: list[str] = []
    unfinished = 0
    with deployed(kafka.bootstrap, tmp_path, agents=("indexer",)) as deployment:
        for _ in range(KILLS):
            new = [new_image_id() for _ in range(IMAGES_PER_KILL)]
            images += new
            deployment.publish(topics.FACTS, *(fact for image_id in new for fact in facts_of(image_id, OWNER)))
            deployment.start("core")
            until(lambda: deployment.state(new[0]) is not None, "the first fact indexed", patience_s=START_S)  # noqa: B023
            time.sleep(CHANCE.uniform(0, LONGEST_S))  # the kill comes at a random moment
            deployment.check_alive()
            assert deployment.children.pop("core").kill() == KILLED
            unfinished += deployment.lag("indexer") > 0
        assert unfinished, "no core was killed while it had facts to index"
        deployment.start("core")
        deployment.until_idle("indexer")
        deployment.check_ended_once(images)
        assert deployment.terminate("core") == 0
        assert not deployment.records(topics.dead_topic("indexer"))
    asyncio.run(
        opened(
            QdrantSettings(path=tmp_path / "qdrant", timeout_s=60),
            lambda model: check_facts(model, images, owner=OWNER),
        )
    )
