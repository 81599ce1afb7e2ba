"""Rates, counted from a real log."""

from __future__ import annotations

import asyncio
import uuid

import pytest

from infra.local.kafka import LocalKafka
from schemas.events.outcomes import ImageCompleted, ImageFailed
from schemas.values import ErrorCode, new_image_id
from streams import topics
from streams.errors import DependencyUnavailable
from streams.kafka import bounded_read
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import read_topic
from streams.kafka.messages import in_bulk, outgoing
from streams.kafka.producer import open_producer
from streams.lanes.bulk_lane import read_bulk
from streams.operations import recent_rates
from streams.operations.consumer_lag import Backlog
from streams.operations.recent_rates import ACCEPTED, MINUTES, RecentLog
from streams.settings import KafkaSettings
from tests.support.stage_kit import uploaded


async def _look(log: RecentLog) -> None:
    """Look, retrying until new topics have leaders."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await log.look()
            except DependencyUnavailable:
                await asyncio.sleep(0.2)


def _lately(log: RecentLog, owner: str | None = None) -> dict[str, int]:
    """Return the counts of the longest window, for slow machines."""
    return {what: by_minutes[MINUTES[-1]] for what, by_minutes in log.lately(owner).items()}


async def test_every_acceptance_and_end_is_counted_once_in_every_process(
    kafka: LocalKafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uploads, also through the bulk lane, and outcomes count once each, by owner, across looks and processes."""
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=f"r{uuid.uuid4().hex[:8]}.", partitions=2)
    admin = KafkaAdmin(settings)
    await admin.create_topics([topics.UPLOADED, topics.FETCH_REQUESTED, topics.BULK, topics.OUTCOMES])
    log = RecentLog(settings)
    await _look(log)
    assert (_lately(log), log.behind) == ({}, False)

    async with open_producer(settings, source="darkroom/gateway") as gateway:
        waits = outgoing(topics.UPLOADED, uploaded(owner="berta"), source="darkroom/gateway", traceparent=None)
        for _ in range(3):
            await gateway.send(topics.UPLOADED, uploaded(owner="anna"))
        await gateway.deliver([in_bulk(waits)])
        (record,) = read_topic(settings, topics.BULK.name)
        await gateway.deliver([read_bulk(record).message])  # as the scheduler forwards it
        await gateway.send(topics.OUTCOMES, ImageCompleted(image_id=new_image_id(), owner="anna"))
    async with open_producer(settings, source="darkroom/reconciler") as reconciler:
        await reconciler.send(topics.UPLOADED, uploaded(owner="anna"))  # a repeat of an earlier upload
    await _look(log)
    assert _lately(log) == {ACCEPTED: 4, "completed": 1}
    assert _lately(log, "berta") == {ACCEPTED: 1}

    failed = ImageFailed(image_id=new_image_id(), owner="anna", code=ErrorCode.INTERNAL_ERROR, message="x")
    async with open_producer(settings, source="darkroom/indexer") as indexer:
        for _ in range(2):  # at least once
            await indexer.send(topics.OUTCOMES, failed)
    await _look(log)
    another = RecentLog(settings)
    monkeypatch.setattr(recent_rates, "MAX_RECORDS", 3)
    await _look(another)
    assert another.behind
    while another.behind:
        await _look(another)
    assert _lately(log) == _lately(another) == {ACCEPTED: 4, "completed": 1, "failed": 1}


async def test_the_lag_of_an_agent_is_counted(kafka: LocalKafka) -> None:
    """The lag counts the uncommitted events of all topics of an agent."""
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=f"r{uuid.uuid4().hex[:8]}.", partitions=2)
    admin = KafkaAdmin(settings)
    await admin.create_topics()
    async with open_producer(settings, source="darkroom/gateway") as gateway:
        for _ in range(5):
            await gateway.send(topics.UPLOADED, uploaded())
    assert await Backlog(admin).waiting("sanitizer") == 5
    assert await Backlog(admin).waiting("ocr") == 0
    assert await Backlog(admin).waiting("scheduler") == 0


async def test_rates_without_kafka_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer is DependencyUnavailable."""
    monkeypatch.setattr(bounded_read, "ANSWER_S", 1.0)
    with pytest.raises(DependencyUnavailable):
        await RecentLog(KafkaSettings(bootstrap="127.0.0.1:9")).look()
