"""The feed's reader: one plain consumer per process, of no group, over the facts and the outcomes.

It begins a little before the end, so that what happened just before a restart is told to whoever resumes. Whoever
resumes from further back is read to from the log (`streams.live.catch_up`) until the feed remembers far enough.
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
from streams.live.broadcast import Delivery, Feed, Listener, Lost
from streams.live.catch_up import AT_ONCE, LOOK_BACK, CatchUp, as_record, plain_reader
from streams.live.cursors import Positions
from streams.live.progress_events import TOPICS
from streams.settings import Group, KafkaSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

POLL_S = 0.5
PROVED_S = 1.0  # seconds a proof that Kafka answers is good for


class LiveSettings(Group):
    """Live progress: who is told, and how much is kept for them; DARKROOM_LIVE__…"""

    max_listeners: int = Field(
        2_000, ge=1, description="streams open at once in one process; well below server.max_connections"
    )
    max_of_owner: int = Field(1_000, ge=1, description="of them, streams of one owner")
    remembered: int = Field(5_000, ge=1, description="events kept in memory for those who resume")
    queue: int = Field(256, ge=1, description="events one listener may be behind before its stream is cut")
    heartbeat_s: float = Field(15.0, gt=0, description="seconds between signs of life on a quiet stream")
    send_timeout_s: float = Field(30.0, gt=0, description="seconds a listener may take nothing before it is let go")
    max_stream_s: float = Field(
        3600.0, gt=0, description="seconds after which a stream ends and is asked for again, credentials included"
    )
    retry_ms: int = Field(2_000, ge=0, description="milliseconds a client is told to wait before it resumes")
    read_backs: int = Field(4, ge=1, description="listeners who may be read to from the log itself at once")
    read_back_s: float = Field(30.0, gt=0, description="seconds that may take, waiting for a turn included")
    answer_s: float = Field(3.0, gt=0, description="seconds Kafka may take to prove that it is there")
    reconnect_s: float = Field(2.0, gt=0, description="seconds between tries to reach Kafka again")


class Listening:
    """One listener at work: first what was missed, then what comes."""

    def __init__(self, listener: Listener, back: CatchUp | None, older: AsyncGenerator[Delivery, None] | None) -> None:
        self._listener = listener
        self._back = back
        self._older = older

    async def next(self, wait_s: float) -> Delivery | None:
        """Return what happened next; None if nothing did for so long, or nothing will.

        Raises TooSlow, Lost, Unfinished and DependencyUnavailable; all end the stream.
        """
        if self._older is not None:
            async for told in self._older:
                return told
            self._back = self._older = None
        return await self._listener.next(wait_s)

    def cursor(self) -> str | None:
        """Return the cursor of this very moment, if there is nothing to be told before it."""
        return self._back.cursor if self._back is not None else self._listener.cursor()


class LogFeed:
    """The feed of one process, from Kafka."""

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
        self._reading_back = asyncio.Semaphore(settings.read_backs)
        self._proving = asyncio.Lock()
        self._proved_at = -PROVED_S
        self._away: str | None = None

    async def run(self) -> None:
        """Read until cancelled; when Kafka is away, until it is back."""
        while True:
            try:
                await self._read()
            except (KafkaError, TimeoutError) as error:
                log.warning("the feed is without Kafka and tries again", error=repr(error))
            except Exception:  # a bug of ours: behind the record it was about, the feed goes on
                log.exception("the feed failed and begins again")
            await asyncio.sleep(self.settings.reconnect_s)

    async def check(self) -> None:
        """Prove that what happens now will be told. Raises DependencyUnavailable."""
        async with self._proving:
            if time.monotonic() - self._proved_at >= PROVED_S:
                self._away = await self._why_away()
                self._proved_at = time.monotonic()
        if self._away is not None:
            raise DependencyUnavailable(self._away)

    @asynccontextmanager
    async def listening(
        self, owner: str, image_id: str | None = None, since: Positions | None = None
    ) -> AsyncIterator[Listening]:
        """Listen to an image, or to all of an owner, from a position on, or from now on.

        Raises Crowded, Lost, and DependencyUnavailable when nobody can say where now is.
        """
        listener = self.feed.listener(owner, image_id)
        try:
            if since is None:
                await self._read_to_now()
                self.feed.join(listener, self.feed.positions)
                yield Listening(listener, None, None)
                return
            spots = await self._checked(since, image_id)
            back = CatchUp(self._kafka, self.feed, self._places, listener, since, spots)
            older = back.told(self._reading_back, self.settings.read_back_s)
            try:
                yield Listening(listener, back, older)
            finally:
                await older.aclose()
        finally:
            listener.close()

    def close(self) -> None:
        """End all streams, because the process goes."""
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
        """Go on where the feed stood if the log still holds that, else begin anew; return where the log ends."""
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
                log.info("the feed is up", partitions=len(spots))
            for place, messages in (await consumer.getmany(timeout_ms=int(POLL_S * 1000), max_records=AT_ONCE)).items():
                for message in messages:
                    self.feed.take(spots[place], as_record(message, self._kafka))

    async def _described(self) -> tuple[tuple[int, ...], list[TopicPartition]]:
        """Return how many partitions each topic has, and all of them in the order of positions."""
        client = AIOKafkaAdminClient(bootstrap_servers=self._kafka.bootstrap, request_timeout_ms=10_000)
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
            raise TimeoutError(f"not all of these topics are there: {', '.join(names)}")
        return shape, [
            TopicPartition(name, index) for name, count in zip(names, shape, strict=True) for index in range(count)
        ]

    async def _checked(self, since: Positions, image_id: str | None) -> Sequence[int]:
        """Return the partitions that matter. Raises Lost for a position the log never had."""
        feed = self.feed
        if len(since) != len(feed.positions):
            raise Lost
        spots = range(len(since)) if image_id is None else _spots_of(image_id, feed.shape)
        ahead = [self._places[spot] for spot in spots if since[spot] > feed.positions[spot]]
        if ahead and self._consumer is not None:  # another process may have read further than this one
            try:
                ends = await bounded(self._consumer.end_offsets(ahead), self.settings.answer_s)
            except (KafkaError, TimeoutError) as error:
                raise DependencyUnavailable(f"Kafka does not answer: {error!r}") from error
            if any(since[spot] > ends.get(self._places[spot], since[spot]) for spot in spots):
                raise Lost
        return spots

    async def _read_to_now(self) -> None:
        """Wait until what is read again to know it has been read: what comes from then on is new."""
        try:
            await bounded(self.ready.wait(), self.settings.answer_s)
        except TimeoutError as error:
            raise DependencyUnavailable("the feed has not read the log yet") from error

    async def _why_away(self) -> str | None:
        try:
            async with asyncio.timeout(self.settings.answer_s):
                await self.ready.wait()
                if self._consumer is None:
                    return "the feed is not connected to Kafka"
                await self._consumer.end_offsets(self._places[:1])
        except (KafkaError, TimeoutError) as error:
            return f"Kafka does not answer: {error!r}"
        return None

    async def _in_time(self, call: Awaitable[T]) -> T:
        """Await what the client itself would try for ever. Raises TimeoutError."""
        return await bounded(call, self._kafka.request_timeout_s)


@asynccontextmanager
async def open_feed(kafka: KafkaSettings, settings: LiveSettings) -> AsyncIterator[LogFeed]:
    """Open the feed; it reads in the background, and is there when Kafka is."""
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
    """Return which partitions speak of an image: keys are partitioned as Java's client does it."""
    spots, before = [], 0
    for count in shape:
        spots.append(before + (murmur2(image_id.encode()) & 0x7FFFFFFF) % count)
        before += count
    return spots
