"""Kafka or the object store goes away in the middle of work and comes back: nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio
from infra.local.supervisor import Backoff, Supervisor
from streams import topics
from streams.settings import FilesSettings
from tests.support.plant import Plant, planted, until

AGENTS = ("sanitizer", "resizer", "indexer")


@pytest.fixture
def plant(kafka: LocalKafka, tmp_path: Path) -> Iterator[Plant]:
    """Return the topics and the store for processes that a supervisor starts."""
    with planted(kafka.bootstrap, tmp_path, agents=AGENTS) as plant:
        yield plant


async def test_a_broker_that_restarts_loses_nothing(
    kafka: LocalKafka, plant: Plant, images: dict[str, bytes], calm: dict[str, dict[str, str]]
) -> None:
    """The broker is killed and comes back with events in mid-stream: whoever left is started again, nothing is lost."""

    def begin() -> list[tuple[str, str]]:
        plant.until_ready(*AGENTS)
        events = [(name, plant.uploaded(data)) for _ in range(6) for name, data in images.items()]
        plant.say(topics.UPLOADED, *(event for _, event in events))
        until(lambda: len(plant.records(topics.FACTS)) > 5, "work being under way")
        return [(name, event.image_id) for name, event in events]

    def check(sent: list[tuple[str, str]]) -> None:
        ids = [image_id for _, image_id in sent]
        plant.until_ended(ids)
        plant.until_idle(*AGENTS)
        plant.check_ended_once(ids)
        for name, image_id in sent:
            assert plant.objects(image_id) == calm[name]

    async with Supervisor(backoff=Backoff(first_s=0.5, most_s=4)) as supervisor:
        for name in ("sanitizer", "resizer", "core"):
            supervisor.start(name, plant.command(name), log_file=plant.log_file(name), env=plant.environment)
        sent = await asyncio.to_thread(begin)
        assert len(plant.outcomes()) < len(sent), "all was over before the restart"
        kafka.kill()
        await kafka.restart()
        await asyncio.to_thread(check, sent)


def test_a_store_that_comes_back_loses_nothing(
    kafka: LocalKafka, minio: LocalMinio, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """While MinIO is away events wait in delay topics; when it is back the router returns them and each image ends."""
    files = FilesSettings(
        endpoint=minio.endpoint,
        access_key=minio.access_key,
        secret_key=SecretStr(minio.secret_key),
        bucket="faults",
        timeout_s=3,
    )
    # The last tier is long enough for a MinIO that starts slowly; the first two are what a test waits for.
    settings = {
        "DARKROOM_RETRY__TIERS": '{"30s": 2, "5m": 6, "30m": 60}',
        "DARKROOM_RETRY__IN_PLACE_TOTAL_S": "1",
        "DARKROOM_BREAKER__FAILURES": "1000",  # here every event is to try for itself
    }
    with planted(kafka.bootstrap, tmp_path, files=files, settings=settings) as plant:
        events = {name: plant.uploaded(data) for name, data in images.items()}
        ids = [event.image_id for event in events.values()]
        plant.start("sanitizer", "resizer", "core", "router")
        plant.until_ready(*AGENTS, "router")
        minio.kill()
        try:
            plant.say(topics.UPLOADED, *events.values())
            delayed = topics.delay_topic("sanitizer", "30s")
            until(lambda: {r.header("ce_subject") for r in plant.records(delayed)} == set(ids), "all events waiting")
            assert not plant.records(topics.SANITIZED)
        finally:
            asyncio.run(minio.restart())
        plant.until_ended(ids)
        plant.check_ended_once(ids)
        assert {name: plant.objects(event.image_id) for name, event in events.items()} == calm
        returned = plant.records(topics.retry_topic("sanitizer"))
        assert {(r.key, r.value) for r in returned} == {(event.key(), event.body()) for event in events.values()}
        attempts = {plant.result(image_id).stages["sanitizer"].attempts or 0 for image_id in ids}
        assert min(attempts) > 1, "an image shows how often it was tried"
        assert not [letter for agent in AGENTS for letter in plant.records(topics.dead_topic(agent))]
