"""Kafka or the object store is unavailable for a time: nothing is lost."""

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
from tests.support.deployment import Deployment, deployed, until

pytestmark = pytest.mark.lengthy

AGENTS = ("sanitizer", "resizer", "indexer")


@pytest.fixture
def deployment(kafka: LocalKafka, tmp_path: Path) -> Iterator[Deployment]:
    """Return topics and a store for processes that a supervisor starts."""
    with deployed(kafka.bootstrap, tmp_path, agents=AGENTS) as deployment:
        yield deployment


async def test_a_broker_restart_loses_nothing(
    kafka: LocalKafka, deployment: Deployment, images: dict[str, bytes], calm: dict[str, dict[str, str]]
) -> None:
    """The broker is killed and restarted under load: exited workers are restarted and nothing is lost."""

    def begin() -> list[tuple[str, str]]:
        deployment.until_ready(*AGENTS)
        events = [(name, deployment.uploaded(data)) for _ in range(6) for name, data in images.items()]
        deployment.publish(topics.UPLOADED, *(event for _, event in events))
        until(lambda: len(deployment.records(topics.FACTS)) > 5, "the first facts")
        return [(name, event.image_id) for name, event in events]

    def check(sent: list[tuple[str, str]]) -> None:
        ids = [image_id for _, image_id in sent]
        deployment.until_ended(ids)
        deployment.until_idle(*AGENTS)
        deployment.check_ended_once(ids)
        for name, image_id in sent:
            assert deployment.objects(image_id) == calm[name]

    async with Supervisor(backoff=Backoff(first_s=0.5, most_s=4)) as supervisor:
        for name in ("sanitizer", "resizer", "core"):
            supervisor.start(
                name, deployment.command(name), log_file=deployment.log_file(name), env=deployment.environment
            )
        sent = await asyncio.to_thread(begin)
        assert len(deployment.outcomes()) < len(sent), "all images ended before the restart"
        kafka.kill()
        await kafka.restart()
        await asyncio.to_thread(check, sent)


def test_a_store_outage_loses_nothing(
    kafka: LocalKafka, minio: LocalMinio, images: dict[str, bytes], calm: dict[str, dict[str, str]], tmp_path: Path
) -> None:
    """While MinIO is unavailable, events wait in delay topics; then the router returns them and each image ends."""
    files = FilesSettings(
        endpoint=minio.endpoint,
        access_key=minio.access_key,
        secret_key=SecretStr(minio.secret_key),
        bucket="faults",
        timeout_s=3,
    )
    # The last tier covers a slow start of MinIO; the test waits for the first two.
    settings = {
        "DARKROOM_RETRY__TIERS": '{"30s": 2, "5m": 6, "30m": 60}',
        "DARKROOM_RETRY__IN_PLACE_TOTAL_S": "1",
        "DARKROOM_BREAKER__FAILURES": "1000",  # every event must be tried
    }
    with deployed(kafka.bootstrap, tmp_path, files=files, settings=settings) as deployment:
        events = {name: deployment.uploaded(data) for name, data in images.items()}
        ids = [event.image_id for event in events.values()]
        deployment.start("sanitizer", "resizer", "core", "router")
        deployment.until_ready(*AGENTS, "router")
        minio.kill()
        try:
            deployment.publish(topics.UPLOADED, *events.values())
            delayed = topics.delay_topic("sanitizer", "30s")
            until(
                lambda: {r.header("ce_subject") for r in deployment.records(delayed)} == set(ids), "all events waiting"
            )
            assert not deployment.records(topics.SANITIZED)
        finally:
            asyncio.run(minio.restart())
        deployment.until_ended(ids)
        deployment.check_ended_once(ids)
        assert {name: deployment.objects(event.image_id) for name, event in events.items()} == calm
        returned = deployment.records(topics.retry_topic("sanitizer"))
        assert {(r.key, r.value) for r in returned} == {(event.key(), event.body()) for event in events.values()}
        attempts = {deployment.result(image_id).stages["sanitizer"].attempts or 0 for image_id in ids}
        assert min(attempts) > 1, "the result has the number of attempts"
        assert not [letter for agent in AGENTS for letter in deployment.records(topics.dead_topic(agent))]
