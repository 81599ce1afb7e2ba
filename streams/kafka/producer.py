"""Producer: idempotent aiokafka, every delivery awaited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from schemas.events.envelope import Event, Outgoing
from streams.errors import DeliveryUnconfirmed, DependencyUnavailable
from streams.kafka.access_errors import explained, undelivered
from streams.kafka.messages import in_bulk, outgoing
from streams.kafka.security import aiokafka_arguments
from streams.settings import KafkaSettings
from streams.telemetry.tracing import child_of
from streams.topics import Topic


class Deliverer(Protocol):
    """Delivers messages and returns once the log has acknowledged them."""

    async def deliver(self, messages: Sequence[Outgoing]) -> None:
        """Deliver all, in order per key. Raises DependencyUnavailable if any was not acknowledged in time."""


class EventProducer:
    """Producer with awaited delivery. Acks from all in-sync replicas; idempotent, so a retry never duplicates.

    If a delivery is not confirmed in time, the connection and its buffer are discarded, so that no message is delivered
    after its sender received the error. The next delivery reconnects.
    """

    def __init__(self, settings: KafkaSettings, source: str) -> None:
        self._settings = settings
        self._source = source
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def connect(self) -> AIOKafkaProducer:
        """Return the connected producer. Raises DependencyUnavailable if Kafka does not answer."""
        async with self._connecting:
            if self._producer is None:
                producer = AIOKafkaProducer(
                    **aiokafka_arguments(self._settings),
                    client_id=self._source.rsplit("/", 1)[-1] or "darkroom",
                    enable_idempotence=True,
                    acks="all",
                    compression_type="lz4",
                    linger_ms=2,
                    max_request_size=1_048_576,
                    request_timeout_ms=int(self._settings.request_timeout_s * 1000),
                )
                try:
                    async with asyncio.timeout(self._settings.request_timeout_s):
                        await producer.start()
                except (KafkaError, TimeoutError) as error:
                    await producer.stop()
                    raise await explained(self._settings, error) from error
                self._producer = producer
            return self._producer

    async def deliver(self, messages: Sequence[Outgoing]) -> None:
        """See Deliverer."""
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(self._settings.request_timeout_s):
                producer = self._producer or await self.connect()
                futures = [
                    await producer.send(
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
            await self._abandon(producer)
            kind = DependencyUnavailable if producer is None else DeliveryUnconfirmed
            reason = undelivered(self._settings, error, (self._settings.topic(message.topic) for message in messages))
            raise kind(f"Kafka did not confirm {len(messages)} message(s): {reason}") from error

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        """Deliver one event, with `bulk` into the bulk lane. Raises DependencyUnavailable if it was not confirmed."""
        message = outgoing(topic, event, source=self._source, traceparent=child_of(traceparent))
        await self.deliver([in_bulk(message) if bulk else message])

    async def close(self) -> None:
        """Deliver buffered messages and disconnect."""
        if self._producer is not None:
            # The client itself would wait without limit; senders await their own deliveries.
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.request_timeout_s):
                    await self._producer.stop()

    async def _abandon(self, producer: AIOKafkaProducer | None) -> None:
        if producer is None or producer is not self._producer:
            return
        self._producer = None
        # stop() would first deliver the buffer, which must be discarded here.
        abandoned: Any = producer
        abandoned._closed = True
        await abandoned._sender.close()
        await abandoned.client.close()


@asynccontextmanager
async def open_producer(settings: KafkaSettings, *, source: str, now: bool = True) -> AsyncIterator[EventProducer]:
    """Open a producer; `source` is the ce_source of what it sends.

    With `now`, raises DependencyUnavailable if Kafka does not answer; without, connects at the first delivery.
    """
    producer = EventProducer(settings, source)
    if now:
        await producer.connect()
    try:
        yield producer
    finally:
        await producer.close()
