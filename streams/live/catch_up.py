"""Catch-up: reads the events a listener missed from the log, until the feed's ring covers its position.

Readers are short-lived and limited in number. Each also reads some records before the listener's position, which it
does not deliver, to recognise repeats after it.
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
from streams.kafka.security import aiokafka_arguments
from streams.live.broadcast import Delivery, Feed, Listener, Lost
from streams.live.cursors import Positions, cursor_of
from streams.live.progress_events import ProgressEvent, progress_event_of
from streams.settings import KafkaSettings

LOOK_BACK = 200  # records per partition
MAX_BATCH = 500  # records of one poll
POLL_S = 0.2


class CatchUpIncomplete(Exception):
    """The time limit ended the catch-up; its cursor resumes it."""


def plain_reader(kafka: KafkaSettings) -> Any:
    """Return a consumer without group and offset reset; the caller assigns and seeks."""
    return AIOKafkaConsumer(
        **aiokafka_arguments(kafka),
        enable_auto_commit=False,
        auto_offset_reset="none",
        isolation_level="read_committed",
    )


def as_record(message: Any, kafka: KafkaSettings) -> Record:
    """Return a message of the client as a Record with its logical topic."""
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
    """The catch-up of one listener from its position to the live feed."""

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
        """The cursor after the last delivery."""
        return cursor_of(self._feed.shape, tuple(self._at))

    async def deliveries(self, slots: asyncio.Semaphore, limit_s: float) -> AsyncGenerator[Delivery, None]:
        """Yield the missed events, then join the feed. Raises Lost, CatchUpIncomplete and DependencyUnavailable."""
        if not self._joined():
            deadline = time.monotonic() + limit_s
            try:
                await bounded(slots.acquire(), limit_s)
            except TimeoutError:
                raise CatchUpIncomplete from None
            consumer = plain_reader(self._kafka)
            try:
                await bounded(self._start(consumer), max(0.0, deadline - time.monotonic()))
                while not self._joined():
                    async for delivery in self._read_to(consumer, self._feed.positions, deadline):
                        yield delivery
            except (KafkaError, TimeoutError) as error:
                raise DependencyUnavailable(f"cannot read missed events from Kafka: {error!r}") from error
            finally:
                slots.release()
                with suppress(KafkaError, TimeoutError):
                    await bounded(consumer.stop(), 5.0)

    def _joined(self) -> bool:
        """Join the feed if its ring covers the position; check and join are one step."""
        at = tuple(self._at)
        if not self._feed.covers(at, self._spots.values()):
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

    async def _read_to(self, consumer: Any, goal: Positions, deadline: float) -> AsyncGenerator[Delivery, None]:
        while behind := [place for place, spot in self._spots.items() if await consumer.position(place) < goal[spot]]:
            if self._feed.closed or time.monotonic() > deadline:
                raise CatchUpIncomplete
            batch = await consumer.getmany(*behind, timeout_ms=int(POLL_S * 1000), max_records=MAX_BATCH)
            for place, messages in batch.items():
                for message in messages:
                    delivery = self._read(self._spots[place], as_record(message, self._kafka))
                    if delivery is not None:
                        yield delivery
        for spot in self._spots.values():
            self._at[spot] = max(self._at[spot], goal[spot])

    def _read(self, spot: int, record: Record) -> Delivery | None:
        what = progress_event_of(record)
        new = what is not None and self._is_new(what)
        if record.offset < self._at[spot]:
            return None
        self._at[spot] = record.offset + 1
        if what is None or not new or not self._feed.visible(what):
            return None
        return Delivery(what, spot, record.offset, tuple(self._at), self._feed.shape)

    def _is_new(self, what: ProgressEvent) -> bool:
        """Return whether an event is for the listener and no repeat; remember its id."""
        if not self._listener.wants(what) or what.id in self._known:
            return False
        self._known[what.id] = None
        if len(self._known) > self._feed.remembered:
            del self._known[next(iter(self._known))]
        return True
