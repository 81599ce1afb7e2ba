"""A log in memory with Kafka's semantics: partitions by murmur2, groups, commits, unacked events, redelivery.

For unit tests and for authors of stages. One contract suite tests it and a real Kafka.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiokafka.partitioner import murmur2

from schemas.events.envelope import Outgoing, Record
from streams.errors import DependencyUnavailable
from streams.runtime.record_intake import Intake


@dataclass(slots=True)
class MemoryLog:
    """Topics of records, and the committed offsets of each group. Also a Deliverer."""

    partitions: int = 4
    topics: dict[str, list[list[Record]]] = field(default_factory=dict)
    committed: dict[tuple[str, str, int], int] = field(default_factory=dict)
    unavailable: bool = False  # as if no broker answered
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    _generation: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    async def deliver(self, messages: Sequence[Outgoing]) -> None:
        """See streams.kafka.producer.Deliverer."""
        if self.unavailable:
            raise DependencyUnavailable("the log is unavailable")
        for message in messages:
            self.append(message)

    def append(self, message: Outgoing) -> Record:
        """Append one message, partitioned as the Java client would."""
        partitions = self.topics.setdefault(message.topic, [[] for _ in range(self.partitions)])
        index = 0 if message.key is None else (murmur2(message.key) & 0x7FFFFFFF) % self.partitions
        record = Record(
            message.topic,
            index,
            len(partitions[index]),
            message.key,
            message.value,
            message.headers,
            int(time.time() * 1000),
        )
        partitions[index].append(record)
        self.arrived.set()
        return record

    def records(self, topic: str) -> list[Record]:
        """Return all records of a topic, partition by partition."""
        return [record for partition in self.topics.get(topic, []) for record in partition]

    def lag(self, group: str, topic: str) -> int:
        """Return the number of records a group has not committed."""
        return sum(
            len(partition) - self.committed.get((group, topic, index), 0)
            for index, partition in enumerate(self.topics.get(topic, []))
        )

    def next_generation(self, group: str) -> int:
        """Start a new assignment of a group's partitions; older ones become stale."""
        self._generation[group] += 1
        return self._generation[group]

    def is_current(self, group: str, generation: int) -> bool:
        """Return whether an assignment is the newest of its group."""
        return self._generation[group] == generation


class MemoryWorker:
    """One member of a group that owns all partitions; a second one takes them over, as after a kill."""

    def __init__(self, log: MemoryLog, group: str, topics: Sequence[str], intake: Intake) -> None:
        self._log = log
        self._group = group
        self._topics = tuple(topics)
        self._intake = intake
        self._generation = log.next_generation(group)
        self._positions = {
            (topic, index): log.committed.get((group, topic, index), 0)
            for topic in self._topics
            for index in range(log.partitions)
        }
        self._task = asyncio.create_task(self._consume(), name=f"memory-{group}")

    async def until_idle(self, *, patience_s: float = 10.0) -> None:
        """Wait until all records in the topics are committed. Raises TimeoutError."""
        async with asyncio.timeout(patience_s):
            # Polls, since commits are plain dictionary writes.
            while any(self._log.lag(self._group, topic) for topic in self._topics):  # noqa: ASYNC110
                await asyncio.sleep(0.002)

    async def stop(self, *, drain_s: float = 5.0) -> bool:
        """Stop as on SIGTERM: finish records in flight, leave the others."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        drained = await self._intake.drain(drain_s)
        await self._intake.runner.close()
        return drained

    async def kill(self) -> None:
        """Stop as on kill -9: no further processing, no further commit."""
        self._task.cancel()
        self._log.next_generation(self._group)
        await asyncio.gather(self._task, return_exceptions=True)
        await self._intake.runner.close()

    async def _consume(self) -> None:
        while True:
            self._log.arrived.clear()
            moved = False
            for (topic, index), position in list(self._positions.items()):
                partition = self._log.topics.get(topic)
                if partition is None or position >= len(partition[index]):
                    continue
                await self._take(partition[index][position])
                self._positions[topic, index] = position + 1
                moved = True
            if not moved:
                await self._log.arrived.wait()

    async def _take(self, record: Record) -> None:
        async def ack() -> None:
            # A replaced member cannot commit: the group coordinator would reject it.
            if self._log.is_current(self._group, self._generation):
                self._log.committed[self._group, record.topic, record.partition] = record.offset + 1

        await self._intake.take(record, self._generation, ack)
