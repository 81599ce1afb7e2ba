"""Kafka or the object store goes away in the middle of work and comes back: nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import SecretStr

from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio
from infra.local.supervisor import Backoff, Supervisor
from schemas.values import ImageState
from streams import topics
from streams.settings import FilesSettings
from tests.faults.processes import Plant, planted, until

AGENTS = ("sanitizer", "resizer", "indexer")


@contextmanager
def _restarting(kafka: LocalKafka, supervisor: Supervisor) -> Iterator[None]:
    yield


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
