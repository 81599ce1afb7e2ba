"""The router: moves events whose delay is over from the delay topics to their agent's retry topic.

A plain client, because a sleeping Faust agent blocks its app. An event that is not due pauses its partition; polling
goes on, so membership is never lost. Equal delay per topic keeps it first in, first out.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.envelope import Outgoing, Record
from streams.errors import DependencyAway
from streams.producer import Deliverer
from streams.retry import DUE_HEADER
from streams.settings import KafkaSettings
from streams.topics import AGENTS, DELAY_TIERS, delay_topic, retry_topic

log = structlog.get_logger(__name__)
POLL_S = 0.5


def due_ms(record: Record) -> int:
    """Return when an event is due, unix milliseconds; 0 (at once) when it does not say."""
    text = record.header(DUE_HEADER) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def forwarded(record: Record, settings: KafkaSettings) -> Outgoing:
    """Return the message that gives an event back to its agent, byte for byte."""
    agent = settings.logical(record.topic).split(".", 1)[0]
    return Outgoing(retry_topic(agent), record.key, record.value, record.headers)


class Router:
    """One member of the router's group."""

    def __init__(
        self,
        settings: KafkaSettings,
        deliverer: Deliverer,
        *,
        agents: Sequence[str] = AGENTS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._settings = settings
        self._deliverer = deliverer
        self._agents = tuple(agents)
        self._clock = clock
        self._resume_at: dict[TopicPartition, float] = {}
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Route until cancelled. Raises DependencyAway when Kafka is away; the supervisor restarts."""
        topics = [self._settings.topic(delay_topic(agent, tier)) for agent in self._agents for tier in DELAY_TIERS]
        consumer = AIOKafkaConsumer(
            *topics,
            bootstrap_servers=self._settings.bootstrap,
            group_id=self._settings.group("router"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=300_000,
        )
        try:
            await consumer.start()
            self.ready.set()
            log.info("router is up", topics=len(topics))
            while True:
                await self._turn(consumer)
        except KafkaError as error:
            raise DependencyAway(f"the router lost Kafka: {error!r}") from error
        finally:
            await consumer.stop()

    async def _turn(self, consumer: Any) -> None:
        assigned = consumer.assignment()
        now = self._clock()
        self._resume_at = {place: at for place, at in self._resume_at.items() if place in assigned}
        for place in [p for p, at in self._resume_at.items() if at <= now]:
            consumer.resume(place)
            del self._resume_at[place]
        nearest = min(self._resume_at.values(), default=now + POLL_S)
        batch = await consumer.getmany(timeout_ms=max(10, int(min(POLL_S, nearest - now) * 1000)), max_records=200)
        for place, messages in batch.items():
            await self._route(consumer, place, messages)

    async def _route(self, consumer: Any, place: TopicPartition, messages: Sequence[Any]) -> None:
        now = self._clock()
        due: list[Outgoing] = []
        done = None
        for message in messages:
            record = Record(
                message.topic, message.partition, message.offset, message.key, message.value, tuple(message.headers)
            )
            at = due_ms(record) / 1000
            if at > now:
                consumer.seek(place, message.offset)
                consumer.pause(place)
                self._resume_at[place] = at
                break
            due.append(forwarded(record, self._settings))
            done = message.offset + 1
        if done is not None:
            await self._deliverer.deliver(due)
            await consumer.commit({place: done})
            log.info("delayed events are due again", topic=place.topic, count=len(due))
