"""Delivery on a real Kafka that fails."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from streams import topics
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import read_topic
from streams.kafka.producer import open_producer
from streams.settings import KafkaSettings
from tests.support.stage_kit import uploaded


async def test_an_unconfirmed_event_is_never_delivered_later(tmp_path: Path) -> None:
    """A failed send is not delivered after Kafka restarts, and the producer delivers later events."""
    async with LocalKafka(tmp_path / "kafka", port=0) as kafka:
        settings = KafkaSettings(bootstrap=kafka.bootstrap, request_timeout_s=5)
        await KafkaAdmin(settings).create_topics([topics.UPLOADED])
        before, lost, after = uploaded(), uploaded(), uploaded()
        async with open_producer(settings, source="test") as producer:
            await producer.send(topics.UPLOADED, before)
            kafka.kill()
            await kafka.wait()
            with pytest.raises(DependencyUnavailable):
                await producer.send(topics.UPLOADED, lost)
            await kafka.restart()
            await producer.send(topics.UPLOADED, after)
        found = [record.header("ce_subject") for record in read_topic(settings, "image.uploaded")]
        assert sorted(filter(None, found)) == sorted([before.image_id, after.image_id])


async def test_a_gateway_s_producer_opens_without_kafka() -> None:
    """Opening without connecting succeeds; delivering raises and names Kafka."""
    settings = KafkaSettings(bootstrap="127.0.0.1:9", request_timeout_s=2)
    async with open_producer(settings, source="test", now=False) as producer:
        with pytest.raises(DependencyUnavailable, match="Kafka"):
            await producer.send(topics.UPLOADED, uploaded())


async def test_an_agent_s_producer_does_not_open_without_kafka() -> None:
    """Opening raises, so that the agent ends and its supervisor restarts it."""
    settings = KafkaSettings(bootstrap="127.0.0.1:9", request_timeout_s=2)
    with pytest.raises(DependencyUnavailable, match="does not answer"):
        async with open_producer(settings, source="test"):
            pass
