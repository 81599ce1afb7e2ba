"""A client of server-sent events (HTML, section 9.2), and a live feed without Kafka."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import httpx
from aiokafka import TopicPartition

from schemas.events.envelope import Event, Record
from schemas.events.outcomes import Outcome
from streams.errors import DependencyUnavailable
from streams.live.log_follower import LiveSettings, LogFeed
from streams.settings import KafkaSettings

QUICK = LiveSettings(heartbeat_s=0.1, retry_ms=10)


@dataclass(frozen=True)
class Sse:
    """One event as an EventSource dispatches it; `id` is the last event id."""

    name: str
    data: Any
    id: str


class Source:
    """An event stream, and the id to resume with."""

    def __init__(self, answer: httpx.Response) -> None:
        self.answer = answer
        self.last_id = ""
        self.comments = 0
        self.retry: int | None = None
        self._lines = answer.aiter_lines()

    async def until_positioned(self) -> None:
        """Wait for the first event id."""
        while not self.last_id:
            field, _, value = (await anext(self._lines)).partition(":")
            if field == "id":
                self.last_id = value.strip()

    async def next(self) -> Sse | None:
        """Return the next event; None at the end of the stream. HTML, section 9.2.6."""
        name, data = "message", list[str]()
        async for line in self._lines:
            if line == "":
                if data:
                    return Sse(name, json.loads("\n".join(data)), self.last_id)
                name = "message"
                continue
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "":
                self.comments += 1
            elif field == "id":
                self.last_id = value
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            elif field == "retry":
                self.retry = int(value)
        return None

    async def rest(self) -> list[Sse]:
        """Return all events until the stream ends."""
        found = []
        while (event := await self.next()) is not None:
            found.append(event)
        return found


@asynccontextmanager
async def listening(client: httpx.AsyncClient, path: str, last_id: str | None = None) -> AsyncIterator[Source]:
    """Open an event stream."""
    headers = {"Last-Event-ID": last_id} if last_id is not None else {}
    async with client.stream("GET", path, headers=headers) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield Source(answer)


class MemoryFeed(LogFeed):
    """A live feed without Kafka: the test appends the events."""

    def __init__(self, settings: LiveSettings = QUICK, partitions: int = 2) -> None:
        super().__init__(KafkaSettings(), settings)
        self.unavailable = False
        self.offsets = [0] * (2 * partitions)
        self._places = [TopicPartition(name, at) for name in ("facts", "outcomes") for at in range(partitions)]
        self.ready.set()
        self.feed.begin((partitions, partitions), tuple(self.offsets))

    async def check(self) -> None:
        if self.unavailable:
            raise DependencyUnavailable("no Kafka at 10.0.0.8:9092")

    def append(self, event: Event, partition: int = 0) -> None:
        """Append an event to its topic, at the next offset of the partition."""
        outcome = isinstance(event, Outcome)
        spot = partition + (self.feed.shape[0] if outcome else 0)
        topic = "image.outcomes" if outcome else "image.facts"
        headers = event.headers(source="test")
        record = Record(topic, partition, self.offsets[spot], event.key(), event.body(), headers)
        self.offsets[spot] += 1
        self.feed.take(spot, record)
