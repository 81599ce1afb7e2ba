"""Lists dead letters page by page: each page starts where the previous one ended and uses bounded memory.

Order: agent, partition, offset. Ordering by time would require reading every partition first.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from schemas.events.envelope import Record
from streams.kafka.bounded_read import open_reader
from streams.retries.dead_letters import DeadLetter, DeadLetterStore, Selection
from streams.settings import KafkaSettings
from streams.topics import dead_topic

CHUNK = 500  # records read at once
CHUNK_BYTES = 8_000_000
PAGE_S = 10.0  # a page that takes longer is returned incomplete
_CONCURRENCY = 2  # reads of the log in one process


@dataclass(frozen=True, slots=True)
class Place:
    """A position in the dead topics."""

    agent: str
    partition: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Letters, and the position of the next page; None on the last page."""

    letters: tuple[DeadLetter, ...]
    next: Place | None


@dataclass(frozen=True, slots=True)
class DeadLetterListing:
    """Pages through dead letters. Calls raise DependencyUnavailable."""

    kafka: KafkaSettings
    store: DeadLetterStore
    _slots: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONCURRENCY))

    async def page(
        self,
        agents: Sequence[str],
        selection: Selection,
        *,
        place: Place | None = None,
        limit: int,
        handled: bool = False,
    ) -> Page:
        """Return the next selected letters of these agents; handled ones only if `handled`."""
        found: list[DeadLetter] = []
        deadline = time.monotonic() + PAGE_S
        here: Place | None = place or Place(agents[0])
        while here is not None and time.monotonic() < deadline:
            records, there = await self._read(agents, here, CHUNK)
            for record in records:
                letter = await self._selected(record, selection, handled=handled)
                if letter is not None:
                    found.append(letter)
                if len(found) == limit:
                    return Page(tuple(found), Place(_agent_of(record.topic), record.partition, record.offset + 1))
            here = there
        return Page(tuple(found), here)

    async def one(self, agent: str, partition: int, offset: int) -> DeadLetter | None:
        """Return one letter, without content if its image was deleted; None if the log does not contain it."""
        records, _ = await self._read([agent], Place(agent, partition, offset), 1)
        if not records or (records[0].partition, records[0].offset) != (partition, offset):
            return None
        return await self.store.known(agent, records[0])

    async def _selected(self, record: Record, selection: Selection, *, handled: bool) -> DeadLetter | None:
        agent = _agent_of(record.topic)
        if not selection.matches(DeadLetter(agent, record, None)):
            return None
        letter = await self.store.known(agent, record)
        return letter if handled or letter.handled is None else None

    async def _read(self, agents: Sequence[str], place: Place, most: int) -> tuple[list[Record], Place | None]:
        async with self._slots:
            return await asyncio.to_thread(read_some, self.kafka, agents, place, most)


def read_some(
    kafka: KafkaSettings, agents: Sequence[str], place: Place, most: int
) -> tuple[list[Record], Place | None]:
    """Return the next dead letters from a position, and the next position. Blocks. Raises DependencyUnavailable."""
    found: list[Record] = []
    room = CHUNK_BYTES
    with open_reader(kafka, buffer_bytes=CHUNK_BYTES) as reader:
        for agent in agents[agents.index(place.agent) :]:
            first = place if agent == place.agent else Place(agent)
            for span in reader.spans(dead_topic(agent), first=first.partition):
                if span.partition == first.partition:
                    span.next = max(span.next, first.offset)
                records = reader.read([span])
                while len(found) < most and room > 0 and (record := next(records, None)) is not None:
                    found.append(record)
                    room -= len(record.value or b"")
                if not span.complete:
                    return found, Place(agent, span.partition, span.next)
    return found, None


def _agent_of(topic: str) -> str:
    return topic.removesuffix(dead_topic(""))
