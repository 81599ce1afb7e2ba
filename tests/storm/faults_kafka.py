"""Faults of the brokers and in the log."""

from __future__ import annotations

import asyncio
import random

from confluent_kafka import KafkaException, Producer

from schemas.events.envelope import Outgoing, Record
from streams.topics import MAX_LETTER_BYTES, PIPELINE, dead_topic
from tests.storm.cluster import set_topic
from tests.storm.faults import Field, NotInjected, send_work
from tests.storm.log import read_topics
from tests.storm.schedule import Planned
from tests.storm.uploads import produce

_FLOOD = 500
_TRUNCATED = 3  # truncated events at a time, below the dead-letter limit
_LAST = 40  # events repeated in another order


async def leader_killed(at: Field, fault: Planned) -> None:
    """Kill the leader of a topic's first partition, and restart it after the duration."""
    cluster = at.world.cluster
    number = await asyncio.to_thread(cluster.leader_of, at.world.kafka.topic(fault.target), 0)
    cluster.nodes[number].kill()
    try:
        await asyncio.sleep(fault.duration_s)
    finally:
        await cluster.restart_stopped([number])


async def rolling_restart(at: Field, _fault: Planned) -> None:
    """Restart the brokers one after the other, each once all replicas are in sync."""
    for node in at.world.cluster.nodes.values():
        await node.restart()
        if not await at.world.cluster.until_replicated(at.world.kafka.prefix):
            raise NotInjected("replicas were not in sync between two restarts")


async def brokers_down(at: Field, fault: Planned) -> None:
    """Kill all brokers, and restart them after the duration."""
    await _stop_brokers(at, list(at.world.cluster.nodes), fault.duration_s)


async def produce_fails(at: Field, fault: Planned) -> None:
    """Kill two of three brokers: below min.insync.replicas nothing can be produced."""
    await _stop_brokers(at, list(at.world.cluster.nodes)[1:], fault.duration_s)


async def _stop_brokers(at: Field, numbers: list[int], seconds: float) -> None:
    for number in numbers:
        at.world.cluster.nodes[number].kill()
    try:
        await asyncio.sleep(seconds)
    finally:
        await at.world.cluster.restart_stopped(numbers)


async def duplicate_flood(at: Field, fault: Planned) -> None:
    """Repeat the latest events of a topic, at most 500."""
    records = (await _records(at, fault.target))[-_FLOOD:]
    await asyncio.to_thread(produce, at.world, [_again(record) for record in records])


async def reordered_truncated(at: Field, fault: Planned) -> None:
    """Repeat the last events of a topic in another order, some of them truncated."""
    records = (await _records(at, fault.target))[-_LAST:]
    messages = [_again(record) for record in records]
    readers = next(topic.readers for topic in PIPELINE if topic.name == fault.target)
    for number, record in enumerate(records[:_TRUNCATED]):
        cut = (record.value or b"")[: 40 + number]
        messages.append(Outgoing(record.topic, record.key, cut, record.headers))
        at.poison += [(agent, cut) for agent in readers]
    random.Random(len(records)).shuffle(messages)
    await asyncio.to_thread(produce, at.world, messages)


async def transaction_markers(at: Field, fault: Planned) -> None:
    """Repeat some events in an aborted and in a committed transaction: both leave markers in the log."""
    records = (await _records(at, fault.target))[-10:]
    await asyncio.to_thread(_in_transactions, at, [_again(record) for record in records])
    await send_work(at, "sanitizer")


async def dead_letters_rejected(at: Field, fault: Planned) -> None:
    """Make the dead-letter topic of an agent reject writes while a malformed event arrives."""
    kafka, agent = at.world.kafka, fault.target
    name = kafka.topic(dead_topic(agent))
    topic = next(topic for topic in PIPELINE if agent in topic.readers)
    value = b"poison " + str(len(at.poison)).encode()
    await asyncio.to_thread(set_topic, kafka.bootstrap, name, "max.message.bytes", "10")
    try:
        at.poison.append((agent, value))
        await asyncio.to_thread(produce, at.world, [Outgoing(topic.name, value, value)])
        await asyncio.sleep(fault.duration_s)
    finally:
        await asyncio.to_thread(set_topic, kafka.bootstrap, name, "max.message.bytes", str(MAX_LETTER_BYTES))


async def _records(at: Field, topic: str) -> list[Record]:
    try:
        return await asyncio.to_thread(read_topics, at.world.kafka, [topic])
    except (KafkaException, TimeoutError) as error:
        raise NotInjected(f"{topic} could not be read: {error}") from error


def _again(record: Record) -> Outgoing:
    return Outgoing(record.topic, record.key, record.value, record.headers)


def _in_transactions(at: Field, messages: list[Outgoing]) -> None:
    kafka = at.world.kafka
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "partitioner": "murmur2_random",
            "transactional.id": f"{kafka.prefix}markers",
            "log_level": 0,
        }
    )
    producer.init_transactions(60)
    for commits in (False, True):
        producer.begin_transaction()
        for message in messages:
            headers = list(message.headers)
            producer.produce(kafka.topic(message.topic), key=message.key, value=message.value, headers=headers)
        producer.flush(30)
        if commits:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    at.markers += 2 * kafka.partitions
