"""The router: moves events whose delay is over from the delay topics to their agent's retry topic.

A plain client, because a sleeping Faust agent blocks its app. An event that is not due pauses its partition; polling
goes on, so membership is never lost. Equal delay per topic keeps it first in, first out.

When an event is due was said by another machine's clock, and clocks jump. So waiting is measured by the monotonic
clock and never takes longer than the topic's delay; what the end of such a wait says of the time is remembered for the
events behind it, which therefore do not wait one after the other.
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
from streams.retries.retry_policy import DUE_HEADER
from streams.settings import KafkaSettings
from streams.topics import AGENTS, DELAY_TIERS, delay_topic, retry_topic

log = structlog.get_logger(__name__)
POLL_S = 0.5

T = TypeVar("T")


def due_ms(record: Record) -> int:
    """Return when an event is due, unix milliseconds; 0 (at once) when it does not say."""
    text = record.header(DUE_HEADER) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 16 else 0


def forwarded(record: Record, settings: KafkaSettings) -> Outgoing:
    """Return the message that gives an event back to its agent, byte for byte."""
    agent = settings.logical(record.topic).split(".", 1)[0]
    return Outgoing(retry_topic(agent), record.key, record.value, record.headers)


@dataclass(frozen=True, slots=True)
class Hold:
    """The event a partition waits with: it goes on at `until`, monotonic, whatever other clocks say then."""

    offset: int
    until: float


@dataclass(frozen=True, slots=True)
class Learned:
    """What the end of a wait said: the wall's clock is so far ahead of the monotonic one, for those behind it."""

    ahead_s: float
    until: float  # monotonic: who was behind it has gone on by then, and a clock that was wrong may be right again


class Waits:
    """Which event of each place may go on, by two clocks: of the wall, which may jump, and a monotonic one."""

    def __init__(self, *, clock: Callable[[], float], monotonic: Callable[[], float]) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._holds: dict[Hashable, Hold] = {}
        self._learned: dict[Hashable, Learned] = {}

    def left_s(self, place: Hashable, offset: int, due: float, longest_s: float) -> float:
        """Return for how long an event still waits, 0 if it goes on now; the first answer is the longest."""
        now = self._monotonic()
        hold = self._holds.get(place)
        if hold is not None and hold.offset == offset:
            if now < hold.until:
                return hold.until - now
            self._learned[place] = Learned(due - hold.until, hold.until + longest_s)
            del self._holds[place]
            return 0.0
        wall, learned = self._clock(), self._learned.get(place)
        if learned is not None and now < learned.until:
            wall = max(wall, now + learned.ahead_s)
        if due <= wall:
            return 0.0
        left = min(due - wall, longest_s)
        self._holds[place] = Hold(offset, now + left)
        return left

    def keep(self, places: Container[Hashable]) -> None:
        """Forget all other places: somebody else has them now."""
        self._holds = {place: hold for place, hold in self._holds.items() if place in places}
        self._learned = {place: known for place, known in self._learned.items() if place in places}


class Router:
    """One member of the router's group."""

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
        self._waits = Waits(clock=clock, monotonic=monotonic)
        self._resume_at: dict[TopicPartition, float] = {}
        self.ready = asyncio.Event()

    async def run(self) -> None:
        """Route until cancelled. Raises DependencyUnavailable when Kafka is away; the supervisor restarts."""
        consumer = AIOKafkaConsumer(
            *self._delays,
            bootstrap_servers=self._settings.bootstrap,
            group_id=self._settings.group("router"),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=300_000,
        )
        try:
            await self._in_time(consumer.start())
            self.ready.set()
            log.info("router is up", topics=len(self._delays))
            while True:
                await self._turn(consumer)
        except (KafkaError, TimeoutError) as error:
            raise DependencyUnavailable(f"the router lost Kafka: {error!r}") from error
        finally:
            with suppress(TimeoutError):
                await self._in_time(consumer.stop())

    async def _in_time(self, call: Awaitable[T]) -> T:
        """Await what the client itself would try for ever. Raises TimeoutError."""
        return await bounded(call, self._settings.request_timeout_s)

    async def _turn(self, consumer: Any) -> None:
        assigned = consumer.assignment()
        now = self._monotonic()
        self._waits.keep(assigned)
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
            left = self._waits.left_s(place, message.offset, due_ms(record) / 1000, self._delays[message.topic])
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
            log.info("delayed events are due again", topic=place.topic, count=len(due))
