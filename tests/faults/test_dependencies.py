"""Kafka or the object store goes away in the middle of work and comes back: nothing is lost."""

from __future__ import annotations

import asyncio
from pathlib import Path

from pydantic import SecretStr

from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio
from infra.local.supervisor import Backoff, Supervisor
from streams import topics
from streams.settings import FilesSettings
from tests.faults.processes import planted, until

AGENTS = ("sanitizer", "resizer", "indexer")


async def test_a_broker_that_restarts_loses_nothing(
    kafka: LocalKafka, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """The broker is restarted with events in mid-stream: workers that left are started again, each image ends once."""
    with planted(kafka.bootstrap, tmp_path, agents=AGENTS) as plant:
        async with Supervisor(backoff=Backoff(first_s=0.5, most_s=4)) as supervisor:
            for name in ("sanitizer", "resizer", "core"):
                supervisor.start(name, plant.command(name), log_file=plant.log_file(name), env=plant.environment)
            await asyncio.to_thread(plant.until_ready, *AGENTS)
            events = [(name, plant.uploaded(data)) for _ in range(6) for name, data in images.items()]
            ids = [event.image_id for _, event in events]
            await asyncio.to_thread(plant.say, topics.UPLOADED, *(event for _, event in events))
            await asyncio.to_thread(until, lambda: len(plant.records(topics.FACTS)) > 5, "work being under way")
            kafka.kill()
            await kafka.restart()
            assert len(await asyncio.to_thread(plant.records, topics.UPLOADED)) == len(events)
            await asyncio.to_thread(plant.until_ended, ids)
            await asyncio.to_thread(plant.until_idle, *AGENTS)
            await asyncio.to_thread(plant.check_ended_once, ids)
            for name, event in events:
                assert await asyncio.to_thread(plant.objects, event.image_id) == calm[name]


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
    settings = {"DARKROOM_RETRY__TIERS": '{"30s": 2, "5m": 6, "30m": 60}', "DARKROOM_RETRY__IN_PLACE_TOTAL_S": "1"}
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
