"""Router: moves events whose delay has expired from the delay topics to their agent's retry topic.

A plain consumer, because a sleeping Faust agent blocks its app. An event that is not due pauses its partition; polling
continues, so the group membership is kept. One delay per topic keeps each partition first in, first out.

The due time comes from another machine's clock, and clocks jump. Waits are therefore measured with the monotonic clock
and limited to the topic's delay. The end of such a wait shows the offset between the clocks, which applies to the
events behind it, so that they do not wait one after the other.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Container, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.events.envelope import Outgoing, Record
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.kafka.producer import Deliverer
from streams.kafka.security import aiokafka_arguments
from streams.retries.retry_policy import DUE_HEADER
from streams.settings import KafkaSettings
from streams.topics import AGENTS, DELAY_TIERS, delay_topic, retry_topic

log = structlog.get_logger(__name__)
POLL_S = 0.5

T = TypeVar("T")


def due_ms(record: Record) -> int:
    """Return when an event is due, unix milliseconds; 0 (at once) without a valid header."""
    text = record.header(DUE_HEADER) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def forwarded(record: Record, settings: KafkaSettings) -> Outgoing:
    """Return the message that returns an event to its agent, byte for byte."""
    agent = settings.logical(record.topic).split(".", 1)[0]
    return Outgoing(retry_topic(agent), record.key, record.value, record.headers)


@dataclass(frozen=True, slots=True)
class Wait:
    """The delayed event at the head of a partition: forwarded at `until`, monotonic, regardless of other clocks."""

    offset: int
    until: float


@dataclass(frozen=True, slots=True)
class ClockOffset:
    """The sender's clock minus the monotonic clock, measured at the end of a wait, for the events behind it."""

    ahead_s: float
    until: float  # monotonic; later events may come from a corrected clock


class DelayTimer:
    """Decides how long each partition's next event waits, by the wall clock, which may jump, and a monotonic clock."""

    def __init__(self, *, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._waits: dict[Hashable, Wait] = {}
        self._offsets: dict[Hashable, ClockOffset] = {}

    def left_s(self, place: Hashable, offset: int, due: float, longest_s: float) -> float:
        """Return the seconds an event still waits, 0 if it is due; results for one event never grow."""
        now = self._monotonic()
        wait = self._waits.get(place)
        if wait is not None and wait.offset == offset:
            if now < wait.until:
                return wait.until - now
            self._offsets[place] = ClockOffset(due - wait.until, wait.until + longest_s)
            del self._waits[place]
            return 0.0
        wall, known = self._clock(), self._offsets.get(place)
        if known is not None and now < known.until:
            wall = max(wall, now + known.ahead_s)
        if due <= wall:
            return 0.0
        left = min(due - wall, longest_s)
        self._waits[place] = Wait(offset, now + left)
        return left

    def keep(self, places: Container[Hashable]) -> None:
        """Drop the state of all other partitions: they are assigned to other members."""
        self._waits = {place: wait for place, wait in self._waits.items() if place in places}
        self._offsets = {place: known for place, known in self._offsets.items() if place in places}


class Router:
    """One member of the router's consumer group."""

    def __init__(
        self,
        settings: KafkaSettings,
        deliverer: Deliverer,
        *,
        agents: Sequence[str] = AGENTS,
        tiers: Mapping[str, float] = DELAY_TIERS,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._deliverer = deliverer
        self._delays = {
            settings.topic(delay_topic(agent, tier)): seconds for agent in agents for tier, seconds in tiers.items()
        }
        self._monotonic = monotonic
        self._timer = DelayTimer(clock=clock, monotonic=monotonic)
        self._resume_at: dict[TopicPartition, float] = {}
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Route until cancelled. Raises DependencyUnavailable if Kafka does not answer; the supervisor restarts it."""
        consumer = AIOKafkaConsumer(
            *self._delays,
            **aiokafka_arguments(self._settings),
            group_id=self._settings.group("router"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=300_000,
        )
        try:
            await self._in_time(consumer.start())
            self.ready.set()
            log.info("router started", topics=len(self._delays))
            while True:
                await self._poll(consumer)
        except (KafkaError, TimeoutError) as error:
            raise DependencyUnavailable(f"the router lost Kafka: {error!r}") from error
        finally:
            with suppress(TimeoutError):
                await self._in_time(consumer.stop())

    async def _in_time(self, call: Awaitable[T]) -> T:
        """Await a call that the client would retry without limit. Raises TimeoutError."""
        return await bounded(call, self._settings.request_timeout_s)

    async def _poll(self, consumer: Any) -> None:
        assigned = consumer.assignment()
        now = self._monotonic()
        self._timer.keep(assigned)
        self._resume_at = {place: at for place, at in self._resume_at.items() if place in assigned}
        for place in [p for p, at in self._resume_at.items() if at <= now]:
            consumer.resume(place)
            del self._resume_at[place]
        nearest = min(self._resume_at.values(), default=now + POLL_S)
        batch = await consumer.getmany(timeout_ms=max(10, int(min(POLL_S, nearest - now) * 1000)), max_records=200)
        for place, messages in batch.items():
            await self._route(consumer, place, messages)

    async def _route(self, consumer: Any, place: TopicPartition, messages: Sequence[Any]) -> None:
        due: list[Outgoing] = []
        done = None
        for message in messages:
            record = Record(
                message.topic, message.partition, message.offset, message.key, message.value, tuple(message.headers)
            )
            left = self._timer.left_s(place, message.offset, due_ms(record) / 1000, self._delays[message.topic])
            if left > 0:
                consumer.seek(place, message.offset)
                consumer.pause(place)
                self._resume_at[place] = self._monotonic() + left
                break
            due.append(forwarded(record, self._settings))
            done = message.offset + 1
        if done is not None:
            await self._deliverer.deliver(due)
            await self._in_time(consumer.commit({place: done}))
            log.info("delayed events forwarded", topic=place.topic, count=len(due))
