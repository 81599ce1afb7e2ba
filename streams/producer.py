"""Producing: an idempotent aiokafka producer whose every delivery is awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.envelope import Event, Outgoing
from streams.errors import DependencyAway
from streams.settings import KafkaSettings
from streams.topics import Topic
from streams.tracing import child_of


class Deliverer(Protocol):
    """Whatever takes messages and returns when they are safely in the log."""

    async def deliver(self, messages: Sequence[Outgoing]) -> None:
        """Deliver all, in order per key. Raises DependencyAway when any was not acknowledged in time."""


def outgoing(topic: Topic, event: Event, *, source: str, traceparent: str | None) -> Outgoing:
    """Return an event as the message that carries it."""
    return Outgoing(topic.name, event.key(), event.body(), event.headers(source=source, traceparent=traceparent))


class EventProducer:
    """Kafka, with awaited delivery. Acks from all in-sync replicas; idempotent, so a retry never duplicates."""

    def __init__(self, producer: AIOKafkaProducer, settings: KafkaSettings, source: str) -> None:
        self._producer = producer
        self._settings = settings
        self._source = source

    async def deliver(self, messages: Sequence[Outgoing]) -> None:
        """See Deliverer."""
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                futures = [
                    await self._producer.send(
                        self._settings.topic(message.topic),
                        key=message.key,
                        value=message.value,
                        headers=list(message.headers),
                    )
                    for message in messages
                ]
                for future in futures:
                    await future
        except (KafkaError, TimeoutError) as error:
            raise DependencyAway(f"Kafka did not confirm {len(messages)} message(s): {error!r}") from error

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None) -> None:
        """Deliver one event. Raises DependencyAway when it was not acknowledged in time."""
        await self.deliver([outgoing(topic, event, source=self._source, traceparent=child_of(traceparent))])


@asynccontextmanager
async def open_producer(settings: KafkaSettings, *, source: str) -> AsyncIterator[EventProducer]:
    """Connect a producer; `source` is the ce_source of what it sends. Raises DependencyAway when Kafka is away."""
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap,
        client_id=source.rsplit("/", 1)[-1] or "darkroom",
        enable_idempotence=True,
        acks="all",
        compression_type="lz4",
        linger_ms=2,
        max_request_size=1_048_576,
        request_timeout_ms=int(settings.request_timeout_s * 1000),
    )
    try:
        await producer.start()
    except KafkaError as error:
        await producer.stop()
        raise DependencyAway(f"Kafka at {settings.bootstrap} does not answer: {error!r}") from error
    try:
        yield EventProducer(producer, settings, source)
    finally:
        await producer.stop()
