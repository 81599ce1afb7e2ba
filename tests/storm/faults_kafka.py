"""Faults of the brokers, and of what is in the log."""

from __future__ import annotations

import asyncio
import random

from confluent_kafka import KafkaException, Producer

from schemas.events.envelope import Outgoing, Record
from streams.topics import MAX_LETTER_BYTES, PIPELINE, dead_topic
from tests.storm.cluster import set_topic
from tests.storm.faults import Field, NotStruck, lure
from tests.storm.log import read_topics
from tests.storm.schedule import Planned
from tests.storm.uploads import produce

_FLOOD = 500
_TRUNCATED = 3  # events cut short at a time: few enough that no agent thinks that all is broken
_LAST = 40  # events said again in another order


async def leader_killed(at: Field, fault: Planned) -> None:
    """Kill the broker that leads a topic's first partition with -9; it comes back after a while."""
    cluster = at.world.cluster
    number = await asyncio.to_thread(cluster.leader_of, at.world.kafka.topic(fault.target), 0)
    cluster.nodes[number].kill()
    try:
        await asyncio.sleep(fault.duration_s)
    finally:
        await cluster.bring_back([number])


async def rolling_restart(at: Field, _fault: Planned) -> None:
    """Restart one broker after the other, each once the one before is in sync again."""
    for node in at.world.cluster.nodes.values():
        await node.restart()
        if not await at.world.cluster.until_whole(at.world.kafka.prefix):
            raise NotStruck("the cluster was not whole again between two restarts")


async def brokers_away(at: Field, fault: Planned) -> None:
    """Kill all brokers with -9; they come back after a while."""
    await _lose(at, list(at.world.cluster.nodes), fault.duration_s)


async def produce_fails(at: Field, fault: Planned) -> None:
    """Kill two of three brokers: with one in sync nothing can be produced."""
    await _lose(at, list(at.world.cluster.nodes)[1:], fault.duration_s)


async def _lose(at: Field, numbers: list[int], seconds: float) -> None:
    for number in numbers:
        at.world.cluster.nodes[number].kill()
    try:
        await asyncio.sleep(seconds)
    finally:
        await at.world.cluster.bring_back(numbers)


async def duplicate_flood(at: Field, fault: Planned) -> None:
    """Say the latest events of a topic again; all of them, until there are so many that nothing else would be seen."""
    records = (await _records(at, fault.target))[-_FLOOD:]
    await asyncio.to_thread(produce, at.world, [_again(record) for record in records])


async def reordered_truncated(at: Field, fault: Planned) -> None:
    """Say the last events of a topic again in another order, with some cut short among them."""
    records = (await _records(at, fault.target))[-_LAST:]
    messages = [_again(record) for record in records]
    readers = next(topic.readers for topic in PIPELINE if topic.name == fault.target)
    for number, record in enumerate(records[:_TRUNCATED]):
        cut = (record.value or b"")[: 40 + number]
        messages.append(Outgoing(record.topic, record.key, cut, record.headers))
        at.poison += [(agent, cut) for agent in readers]
    random.Random(len(records)).shuffle(messages)
    await asyncio.to_thread(produce, at.world, messages)


async def transaction_holes(at: Field, fault: Planned) -> None:
    """Say some events again in a transaction that is aborted and in one that commits: both leave holes."""
    records = (await _records(at, fault.target))[-10:]
    await asyncio.to_thread(_in_transactions, at, [_again(record) for record in records])
    await lure(at, "sanitizer")


async def dead_letters_away(at: Field, fault: Planned) -> None:
    """Have the dead-letter topic of an agent refuse what is sent to it, while there is poison; then take it again."""
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
        raise NotStruck(f"{topic} could not be read: {error}") from error


def _again(record: Record) -> Outgoing:
    return Outgoing(record.topic, record.key, record.value, record.headers)


def _in_transactions(at: Field, messages: list[Outgoing]) -> None:
    kafka = at.world.kafka
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "partitioner": "murmur2_random",
            "transactional.id": f"{kafka.prefix}holes",
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
    at.holes += 2 * kafka.partitions
