"""Topics and groups on a real Kafka, compared with the table."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from infra.local.kafka import LocalKafka
from streams import topics
from streams.errors import DependencyUnavailable, NotReady
from streams.kafka.admin import KafkaAdmin
from streams.kafka.producer import open_producer
from streams.operations.consumer_lag import Backlog
from streams.settings import KafkaSettings
from tests.contracts.logs import OnKafka
from tests.support.stage_kit import message, uploaded


def settings(kafka: LocalKafka, **changes: int) -> KafkaSettings:
    """Return settings with a unique topic prefix."""
    return KafkaSettings.model_validate(
        {"bootstrap": kafka.bootstrap, "prefix": f"a{uuid.uuid4().hex[:8]}.", **changes}
    )


async def test_topics_are_created_once_as_in_the_table(kafka: LocalKafka) -> None:
    """Partitions, retention and sizes are those of the table; a second run creates nothing."""
    admin = KafkaAdmin(settings(kafka))
    assert len(await admin.create_topics()) == len(topics.all_topics())
    assert await admin.create_topics() == []
    states = await admin.topic_states()
    assert [state.problem for state in states] == [None] * len(states)


async def test_a_missing_or_different_topic_is_named(kafka: LocalKafka) -> None:
    """The check fails and names the topic and the remedy."""
    few = settings(kafka)
    admin = KafkaAdmin(few)
    await admin.create_topics([topics.UPLOADED])
    with pytest.raises(NotReady, match=r"image\.facts is missing: run `darkroom topics create`"):
        await admin.check_topics([topics.UPLOADED, topics.FACTS])
    more = KafkaAdmin(few.model_copy(update={"partitions": 12}))
    with pytest.raises(NotReady, match=r"image\.uploaded has 4 partitions, expected 12"):
        await more.check_topics([topics.UPLOADED])


async def test_a_longer_retention_is_reported_and_an_unsafe_topic_is_refused(kafka: LocalKafka) -> None:
    """A different retention passes the check; a compacted topic, which would drop events, fails it by name."""
    own = settings(kafka)
    admin = KafkaAdmin(own)
    await admin.create_topics([topics.UPLOADED, topics.FACTS])
    client = AdminClient({"bootstrap.servers": own.bootstrap})

    def alter(topic: str, key: str, value: str) -> None:
        entry = ConfigEntry(key, value, incremental_operation=AlterConfigOpType.SET)
        resource = ConfigResource("topic", own.topic(topic), incremental_configs=[entry])
        for future in client.incremental_alter_configs([resource]).values():
            future.result()

    alter("image.uploaded", "retention.ms", "9999999999")
    async with asyncio.timeout(20):
        while not (await admin.topic_states([topics.UPLOADED]))[0].problem:
            await asyncio.sleep(0.1)
    await admin.check_topics([topics.UPLOADED])
    alter("image.facts", "cleanup.policy", "compact")
    async with asyncio.timeout(20):
        while not (await admin.topic_states([topics.FACTS]))[0].problem:
            await asyncio.sleep(0.1)
    with pytest.raises(NotReady, match=r"image\.facts has cleanup\.policy compact"):
        await admin.check_topics([topics.FACTS])


async def test_a_worker_without_its_topics_exits_2_and_names_them(kafka: LocalKafka, tmp_path: Path) -> None:
    """A missing `topics create` ends the worker at once with a message."""
    log = OnKafka(kafka.bootstrap, tmp_path)
    await log.start()
    assert await asyncio.wait_for(log.workers[0].wait(), 60) == 2
    assert b"is missing" in (tmp_path / "worker-0.log").read_bytes()


async def test_a_group_without_members_has_all_events_as_lag(kafka: LocalKafka) -> None:
    """An agent that never ran has no members, and its events are counted."""
    log = await OnKafka(kafka.bootstrap, Path()).prepare()
    await log.send([message(uploaded()) for _ in range(3)])
    async with asyncio.timeout(30):
        while True:
            try:
                found = await log.admin.members(["sanitizer"]), await log.admin.lag("sanitizer", ["image.uploaded"])
                break
            except DependencyUnavailable:  # a new broker first creates the offsets topic
                await asyncio.sleep(0.2)
    assert found == ({"sanitizer": 0}, 3)


async def test_the_oldest_uncommitted_event_of_an_agent_is_found(kafka: LocalKafka) -> None:
    """Its timestamp is returned, over all partitions and topics; None for an agent without lag."""
    own = settings(kafka)
    admin = KafkaAdmin(own)
    await admin.create_topics()
    backlog = Backlog(admin)
    began = time.time()
    for agent in ("sanitizer", topics.SCHEDULER):
        assert await with_retries(backlog.oldest, agent) is None
    async with open_producer(own, source="test") as producer:
        await producer.deliver([message(uploaded(), topics.retry_topic("sanitizer"))])
        first = await with_retries(backlog.oldest, "sanitizer")
        assert first is not None
        assert began - 60 < first < time.time() + 60
        await producer.deliver([message(uploaded()) for _ in range(8)])
        assert await backlog.oldest("sanitizer") == first
        await _commit_all(own, topics.retry_topic("sanitizer"))
        second = await backlog.oldest("sanitizer")
        assert second is not None
        assert second > first
        assert await backlog.oldest("ocr") is None
        assert await backlog.oldest(topics.SCHEDULER) is None
        await producer.deliver([message(uploaded(), topics.BULK.name)])
        assert await backlog.oldest(topics.SCHEDULER) is not None


async def _commit_all(own: KafkaSettings, topic: str) -> None:
    """Commit the end of a topic as the sanitizer's group."""
    consumer = AIOKafkaConsumer(bootstrap_servers=own.bootstrap, group_id=own.group("sanitizer"))
    await consumer.start()
    try:
        places = [TopicPartition(own.topic(topic), number) for number in range(own.partitions)]
        consumer.assign(places)
        await consumer.commit(await consumer.end_offsets(places))
    finally:
        await consumer.stop()


async def with_retries(ask: Callable[[str], Awaitable[float | None]], agent: str) -> float | None:
    """Call until a new broker has created the offsets topic."""
    async with asyncio.timeout(60):
        while True:
            try:
                return await ask(agent)
            except DependencyUnavailable:
                await asyncio.sleep(0.2)


async def test_an_unavailable_broker_raises() -> None:
    """Every call returns in time and raises DependencyUnavailable."""
    admin = KafkaAdmin(KafkaSettings(bootstrap="127.0.0.1:9"))
    for call in (admin.members(), admin.lag("ocr", ["image.sanitized"]), admin.topic_states(), admin.create_topics()):
        with pytest.raises(DependencyUnavailable):
            await call
