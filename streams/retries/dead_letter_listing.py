"""Dead letters a page at a time: read from where the page before ended, a bounded number of bytes in memory.

By agent, partition and offset, which is not strictly by time: a page need not read all there is to be told in order.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from confluent_kafka import Consumer, KafkaException, TopicPartition

from schemas.events.envelope import Record
from streams.errors import DependencyUnavailable
from streams.retries.dead_letters import DeadLetter, DeadLetterStore, Selection
from streams.settings import KafkaSettings
from streams.topics import dead_topic

CHUNK = 500  # records read at once
CHUNK_BYTES = 8_000_000
LOOK_S = 10.0  # a page is given up on, with what was found, after so long
_ANSWER_S = 10.0  # for one question to the broker
_AT_ONCE = 2  # readings of the log in one process


@dataclass(frozen=True, slots=True)
class Place:
    """Where the next letter may be."""

    agent: str
    partition: int = 0
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Page:
    """Letters, and where to go on; None when these were the last."""

    letters: tuple[DeadLetter, ...]
    next: Place | None


@dataclass(frozen=True, slots=True)
class DeadLetterListing:
    """Finds letters. Calls raise DependencyUnavailable."""

    kafka: KafkaSettings
    office: DeadLetterStore
    _gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    async def page(
        self,
        agents: Sequence[str],
        selection: Selection,
        *,
        place: Place | None = None,
        limit: int,
        handled: bool = False,
    ) -> Page:
        """Return the next letters of these agents that are meant; those dealt with already only if `handled`."""
        found: list[DeadLetter] = []
        until = time.monotonic() + LOOK_S
        here: Place | None = place or Place(agents[0])
        while here is not None and time.monotonic() < until:
            records, there = await self._some(agents, here, CHUNK)
            for record in records:
                letter = await self._meant(record, selection, handled=handled)
                if letter is not None:
                    found.append(letter)
                if len(found) == limit:
                    return Page(tuple(found), Place(_agent_of(record.topic), record.partition, record.offset + 1))
            here = there
        return Page(tuple(found), here)

    async def one(self, agent: str, partition: int, offset: int) -> DeadLetter | None:
        """Return one letter, emptied if its image was deleted; None when the log does not hold it."""
        records, _ = await self._some([agent], Place(agent, partition, offset), 1)
        if not records or (records[0].partition, records[0].offset) != (partition, offset):
            return None
        return await self.office.known(agent, records[0])

    async def _meant(self, record: Record, selection: Selection, *, handled: bool) -> DeadLetter | None:
        agent = _agent_of(record.topic)
        if not selection.matches(DeadLetter(agent, record, None)):
            return None
        letter = await self.office.known(agent, record)
        return letter if handled or letter.handled is None else None

    async def _some(self, agents: Sequence[str], place: Place, most: int) -> tuple[list[Record], Place | None]:
        async with self._gate:
            return await asyncio.to_thread(read_some, self.kafka, agents, place, most)


def read_some(
    kafka: KafkaSettings, agents: Sequence[str], place: Place, most: int
) -> tuple[list[Record], Place | None]:
    """Return the next dead letters from a position, and the next position. Blocks. Raises DependencyUnavailable."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": kafka.group("reader"),
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "queued.max.messages.kbytes": CHUNK_BYTES // 1000,
        }
    )
    try:
        return _walk(consumer, kafka, agents, place, most)
    except KafkaException as error:
        raise DependencyUnavailable(f"cannot read dead letters: {error}") from error
    finally:
        consumer.close()


def _walk(
    consumer: Consumer, kafka: KafkaSettings, agents: Sequence[str], place: Place, most: int
) -> tuple[list[Record], Place | None]:
    found: list[Record] = []
    for agent in agents[agents.index(place.agent) :]:
        name = kafka.topic(dead_topic(agent))
        first = place if agent == place.agent else Place(agent)
        topic = consumer.list_topics(name, timeout=_ANSWER_S).topics.get(name)
        if topic is None:  # a broker that has just come back does not know its topics at once
            raise DependencyUnavailable(f"the broker does not know {name}")
        for number in sorted(topic.partitions):
            if number < first.partition:
                continue
            start = first.offset if number == first.partition else 0
            end = _read_partition(consumer, TopicPartition(name, number, start), agent, found, most)
            if end is not None:
                return found, Place(agent, number, end)
    return found, None


def _read_partition(
    consumer: Consumer, place: TopicPartition, agent: str, found: list[Record], most: int
) -> int | None:
    """Add what a partition holds from an offset on; return where to go on when there is enough, else None."""
    low, high = consumer.get_watermark_offsets(TopicPartition(place.topic, place.partition), timeout=_ANSWER_S)
    next_offset: int = max(low, place.offset)
    if next_offset >= high:
        return None
    consumer.assign([TopicPartition(place.topic, place.partition, next_offset)])
    while next_offset < high:
        if len(found) >= most or sum(len(record.value or b"") for record in found) >= CHUNK_BYTES:
            return next_offset
        message = consumer.poll(_ANSWER_S)
        if message is None:
            raise DependencyUnavailable(f"{dead_topic(agent)}: the broker stopped answering before the end was read")
        if message.error():
            raise KafkaException(message.error())
        offset = message.offset()
        headers = tuple((name, value) for name, value in message.headers() or ())
        found.append(
            Record(
                dead_topic(agent), place.partition, offset, message.key(), message.value(), headers,
                message.timestamp()[1],
            )
        )  # fmt: skip
        next_offset = offset + 1
    return None


def _agent_of(topic: str) -> str:
    return topic.removesuffix(dead_topic(""))
