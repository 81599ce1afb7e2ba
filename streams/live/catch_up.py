"""Reading back: what a listener missed, from the log itself, until the feed's memory reaches far enough to join it.

Each reader is short-lived, and there are few at a time. It also reads a little of what came before the listener's
position, untold, so that what is said again just after it is known as such.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from schemas.events.envelope import Record
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable
from streams.live.broadcast import Delivery, Feed, Listener, Lost
from streams.live.cursors import Positions, cursor_of
from streams.live.progress_events import ProgressEvent, progress_event_of
from streams.settings import KafkaSettings

LOOK_BACK = 200  # records of each partition
AT_ONCE = 500  # records of one poll
POLL_S = 0.2


class Unfinished(Exception):
    """There is more to read than one reader may; where it came to is known."""


def plain_reader(kafka: KafkaSettings) -> Any:
    """Return a consumer of no group that is given its partitions and positions, and never jumps."""
    return AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap,
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
    )


def as_record(message: Any, kafka: KafkaSettings) -> Record:
    """Return a message of the client as ours."""
    return Record(
        kafka.logical(message.topic),
        message.partition,
        message.offset,
        message.key,
        message.value,
        tuple(message.headers),
        message.timestamp,
    )


class CatchUp:
    """One listener's way from their position to the present."""

    def __init__(
        self,
        kafka: KafkaSettings,
        feed: Feed,
        places: Sequence[TopicPartition],
        listener: Listener,
        since: Positions,
        spots: Sequence[int],
    ) -> None:
        self._kafka = kafka
        self._feed = feed
        self._listener = listener
        self._since = since
        self._spots = {places[spot]: spot for spot in spots}
        self._at = list(since)
        self._known: dict[str, None] = {}

    @property
    def cursor(self) -> str:
        """How far this has come."""
        return cursor_of(self._feed.shape, tuple(self._at))

    async def told(self, turn: asyncio.Semaphore, limit_s: float) -> AsyncGenerator[Delivery, None]:
        """Tell what was missed, then let the listener join. Raises Lost, Unfinished and DependencyUnavailable."""
        if not self._joined():
            deadline = time.monotonic() + limit_s
            try:
                await bounded(turn.acquire(), limit_s)
            except TimeoutError:
                raise Unfinished from None
            consumer = plain_reader(self._kafka)
            try:
                await bounded(self._start(consumer), max(0.0, deadline - time.monotonic()))
                while not self._joined():
                    async for told in self._up_to(consumer, self._feed.positions, deadline):
                        yield told
            except (KafkaError, TimeoutError) as error:
                raise DependencyUnavailable(f"the log could not be read back: {error!r}") from error
            finally:
                turn.release()
                with suppress(KafkaError, TimeoutError):
                    await bounded(consumer.stop(), 5.0)

    def _joined(self) -> bool:
        """Join if the feed remembers far enough; deciding and joining is one step."""
        at = tuple(self._at)
        if not self._feed.holds(at, self._spots.values()):
            return False
        self._feed.join(self._listener, at, self._known)
        return True

    async def _start(self, consumer: Any) -> None:
        await consumer.start()
        begins = await consumer.beginning_offsets(list(self._spots))
        if any(self._since[spot] < begins[place] for place, spot in self._spots.items()):
            raise Lost
        consumer.assign(list(self._spots))
        for place, spot in self._spots.items():
            consumer.seek(place, max(begins[place], self._since[spot] - LOOK_BACK))

    async def _up_to(self, consumer: Any, goal: Positions, deadline: float) -> AsyncGenerator[Delivery, None]:
        while behind := [place for place, spot in self._spots.items() if await consumer.position(place) < goal[spot]]:
            if self._feed.hung_up or time.monotonic() > deadline:
                raise Unfinished
            batch = await consumer.getmany(*behind, timeout_ms=int(POLL_S * 1000), max_records=AT_ONCE)
            for place, messages in batch.items():
                for message in messages:
                    told = self._read(self._spots[place], as_record(message, self._kafka))
                    if told is not None:
                        yield told
        for spot in self._spots.values():
            self._at[spot] = max(self._at[spot], goal[spot])

    def _read(self, spot: int, record: Record) -> Delivery | None:
        what = progress_event_of(record)
        new = what is not None and self._is_new(what)
        if record.offset < self._at[spot]:
            return None
        self._at[spot] = record.offset + 1
        if what is None or not new or not self._feed.tellable(what):
            return None
        return Delivery(what, spot, record.offset, tuple(self._at), self._feed.shape)

    def _is_new(self, what: ProgressEvent) -> bool:
        """Say whether a happening is the listener's and not said before; remember it."""
        if not self._listener.wants(what) or what.id in self._known:
            return False
        self._known[what.id] = None
        if len(self._known) > self._feed.remembered:
            del self._known[next(iter(self._known))]
        return True
