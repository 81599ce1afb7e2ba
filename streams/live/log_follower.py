"""Reads the live feed from Kafka: one consumer per process, without group, over facts and outcomes.

It starts some records before the end, so that clients can resume after a restart. Clients that resume from an earlier
position read the log (`streams.live.catch_up`) until the ring covers their position.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import structlog
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from aiokafka.partitioner import murmur2
from pydantic import Field

from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.kafka.security import aiokafka_arguments
from streams.live.broadcast import Delivery, Feed, Listener, Lost
from streams.live.catch_up import LOOK_BACK, MAX_BATCH, CatchUp, as_record, plain_reader
from streams.live.cursors import Positions
from streams.live.progress_events import TOPICS
from streams.settings import Group, KafkaSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

POLL_S = 0.5
CHECK_S = 1.0  # seconds a successful check of Kafka is reused


class LiveSettings(Group):
    """Live progress: limits and timeouts of event streams; DARKROOM_LIVE__…"""

    max_listeners: int = Field(2_000, ge=1, description="open streams per process; well below server.max_connections")
    max_of_owner: int = Field(1_000, ge=1, description="open streams per owner and process")
    remembered: int = Field(5_000, ge=1, description="events kept in memory for resuming clients")
    queue: int = Field(256, ge=1, description="events a stream may lag behind before it is cut")
    heartbeat_s: float = Field(15.0, gt=0, description="seconds between heartbeats on an idle stream")
    send_timeout_s: float = Field(
        30.0, gt=0, description="seconds without a read by the client until its stream is closed"
    )
    max_stream_s: float = Field(
        3600.0, gt=0, description="seconds after which a stream ends and the client reconnects, with its credentials"
    )
    retry_ms: int = Field(2_000, ge=0, description="milliseconds clients wait before they reconnect")
    read_backs: int = Field(4, ge=1, description="streams that may read missed events from the log at the same time")
    read_back_s: float = Field(30.0, gt=0, description="seconds for reading missed events, waiting included")
    answer_s: float = Field(3.0, gt=0, description="seconds Kafka may take to answer a check")
    reconnect_s: float = Field(2.0, gt=0, description="seconds between attempts to reconnect to Kafka")


class Subscription:
    """One client's stream: missed events first, then live ones."""

    def __init__(
        self, listener: Listener, catch_up: CatchUp | None, missed: AsyncGenerator[Delivery, None] | None
    ) -> None:
        self._listener = listener
        self._catch_up = catch_up
        self._missed = missed

    async def next(self, wait_s: float) -> Delivery | None:
        """Return the next delivery; None after `wait_s`, or if the feed is closed.

        Raises TooSlow, Lost, CatchUpIncomplete and DependencyUnavailable; all end the stream.
        """
        if self._missed is not None:
            async for delivery in self._missed:
                return delivery
            self._catch_up = self._missed = None
        return await self._listener.next(wait_s)

    def cursor(self) -> str | None:
        """Return the current cursor; None while deliveries are queued."""
        return self._catch_up.cursor if self._catch_up is not None else self._listener.cursor()


class LogFeed:
    """The live feed of one process."""

    def __init__(self, kafka: KafkaSettings, settings: LiveSettings) -> None:
        self.settings = settings
        self.feed = Feed(
            remembered=settings.remembered,
            room=settings.queue,
            most=settings.max_listeners,
            most_of_owner=settings.max_of_owner,
        )
        self.ready = asyncio.Event()
        self._kafka = kafka
        self._consumer: Any = None
        self._places: list[TopicPartition] = []
        self._catch_up_slots = asyncio.Semaphore(settings.read_backs)
        self._checking = asyncio.Lock()
        self._checked_at = -CHECK_S
        self._problem: str | None = None

    async def run(self) -> None:
        """Read until cancelled; reconnect when Kafka fails."""
        while True:
            try:
                await self._read()
            except (KafkaError, TimeoutError) as error:
                log.warning("live feed lost Kafka; reconnecting", error=repr(error))
            except Exception:  # a bug: the feed continues after the record that caused it
                log.exception("live feed failed; restarting")
            await asyncio.sleep(self.settings.reconnect_s)

    async def check(self) -> None:
        """Check that the feed delivers new events. Raises DependencyUnavailable."""
        async with self._checking:
            if time.monotonic() - self._checked_at >= CHECK_S:
                self._problem = await self._find_problem()
                self._checked_at = time.monotonic()
        if self._problem is not None:
            raise DependencyUnavailable(self._problem)

    @asynccontextmanager
    async def subscribe(
        self, owner: str, image_id: str | None = None, since: Positions | None = None
    ) -> AsyncIterator[Subscription]:
        """Subscribe to an image, or to all images of an owner, from a position or from now on.

        Raises TooManyListeners and Lost, and DependencyUnavailable while the log's end is unknown.
        """
        listener = self.feed.listener(owner, image_id)
        try:
            if since is None:
                await self._read_to_now()
                self.feed.join(listener, self.feed.positions)
                yield Subscription(listener, None, None)
                return
            spots = await self._checked(since, image_id)
            catch_up = CatchUp(self._kafka, self.feed, self._places, listener, since, spots)
            missed = catch_up.deliveries(self._catch_up_slots, self.settings.read_back_s)
            try:
                yield Subscription(listener, catch_up, missed)
            finally:
                await missed.aclose()
        finally:
            listener.close()

    def close(self) -> None:
        """End all streams, at shutdown."""
        self.feed.close()

    async def _read(self) -> None:
        shape, self._places = await self._described()
        consumer = plain_reader(self._kafka)
        try:
            await self._in_time(consumer.start())
            ends = await self._seek(consumer, shape)
            self._consumer = consumer
            await self._follow(consumer, ends)
        finally:
            self._consumer = None
            self.ready.clear()
            with suppress(KafkaError, TimeoutError):
                await self._in_time(consumer.stop())

    async def _seek(self, consumer: Any, shape: tuple[int, ...]) -> Mapping[TopicPartition, int]:
        """Resume at the feed's position if the log contains it, else restart near the end; return the end offsets."""
        begins = await self._in_time(consumer.beginning_offsets(self._places))
        ends: Mapping[TopicPartition, int] = await self._in_time(consumer.end_offsets(self._places))
        known = self.feed.positions
        if shape != self.feed.shape or not all(
            begins[place] <= at <= ends[place] for place, at in zip(self._places, known, strict=True)
        ):
            back = max(LOOK_BACK, self.settings.remembered // len(self._places))
            known = tuple(max(begins[place], ends[place] - back) for place in self._places)
            self.feed.begin(shape, known)
        consumer.assign(self._places)
        for place, at in zip(self._places, known, strict=True):
            consumer.seek(place, at)
        return ends

    async def _follow(self, consumer: Any, ends: Mapping[TopicPartition, int]) -> None:
        spots = {place: spot for spot, place in enumerate(self._places)}
        while True:
            if not self.ready.is_set() and await _has_read(consumer, ends):
                self.ready.set()
                log.info("live feed started", partitions=len(spots))
            for place, messages in (
                await consumer.getmany(timeout_ms=int(POLL_S * 1000), max_records=MAX_BATCH)
            ).items():
                for message in messages:
                    self.feed.take(spots[place], as_record(message, self._kafka))

    async def _described(self) -> tuple[tuple[int, ...], list[TopicPartition]]:
        """Return the number of partitions per topic, and all partitions in the order of positions."""
        client = AIOKafkaAdminClient(**aiokafka_arguments(self._kafka), request_timeout_ms=10_000)
        names = [self._kafka.topic(topic.name) for topic in TOPICS]
        try:
            await self._in_time(client.start())
            described = await self._in_time(client.describe_topics(names))
        finally:
            with suppress(KafkaError, TimeoutError):
                await self._in_time(client.close())
        found = {topic["topic"]: len(topic["partitions"]) for topic in described}
        shape = tuple(found.get(name, 0) for name in names)
        if not all(shape):
            raise TimeoutError(f"topics missing among {', '.join(names)}")
        return shape, [
            TopicPartition(name, index) for name, count in zip(names, shape, strict=True) for index in range(count)
        ]

    async def _checked(self, since: Positions, image_id: str | None) -> Sequence[int]:
        """Return the relevant partitions of a position. Raises Lost if the log never reached it."""
        feed = self.feed
        if len(since) != len(feed.positions):
            raise Lost
        spots = range(len(since)) if image_id is None else _spots_of(image_id, feed.shape)
        ahead = [self._places[spot] for spot in spots if since[spot] > feed.positions[spot]]
        if ahead and self._consumer is not None:  # another process may have read further
            try:
                ends = await bounded(self._consumer.end_offsets(ahead), self.settings.answer_s)
            except (KafkaError, TimeoutError) as error:
                raise DependencyUnavailable(f"Kafka does not answer: {error!r}") from error
            if any(since[spot] > ends.get(self._places[spot], since[spot]) for spot in spots):
                raise Lost
        return spots

    async def _read_to_now(self) -> None:
        """Wait until the feed has reached the end of the log: later events are new."""
        try:
            await bounded(self.ready.wait(), self.settings.answer_s)
        except TimeoutError as error:
            raise DependencyUnavailable("the live feed has not read the log yet") from error

    async def _find_problem(self) -> str | None:
        try:
            async with asyncio.timeout(self.settings.answer_s):
                await self.ready.wait()
                if self._consumer is None:
                    return "the live feed is not connected to Kafka"
                await self._consumer.end_offsets(self._places[:1])
        except (KafkaError, TimeoutError) as error:
            return f"Kafka does not answer: {error!r}"
        return None

    async def _in_time(self, call: Awaitable[T]) -> T:
        """Await a call that the client would retry without limit. Raises TimeoutError."""
        return await bounded(call, self._kafka.request_timeout_s)


@asynccontextmanager
async def open_feed(kafka: KafkaSettings, settings: LiveSettings) -> AsyncIterator[LogFeed]:
    """Open the live feed; it reads in the background and reconnects when Kafka fails."""
    feed = LogFeed(kafka, settings)
    reading = asyncio.create_task(feed.run(), name="feed")
    try:
        yield feed
    finally:
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)


async def _has_read(consumer: Any, ends: Mapping[TopicPartition, int]) -> bool:
    for place, end in ends.items():
        if await consumer.position(place) < end:
            return False
    return True


def _spots_of(image_id: str, shape: Sequence[int]) -> list[int]:
    """Return the partitions of an image's events: keys are partitioned as by the Java client (murmur2)."""
    spots, before = [], 0
    for count in shape:
        spots.append(before + (murmur2(image_id.encode()) & 0x7FFFFFFF) % count)
        before += count
    return spots
