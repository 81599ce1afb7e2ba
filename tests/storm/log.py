"""Reads whole topics, also those with transaction markers."""

from __future__ import annotations

import time

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from schemas.events.envelope import Record
from streams.settings import KafkaSettings

_PATIENCE_S = 120.0


def read_topics(kafka: KafkaSettings, topics: list[str]) -> list[Record]:
    """Return all records of logical topics, each topic's oldest first. Raises KafkaException, TimeoutError."""
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": kafka.group("storm-reader"),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    try:
        left = set()
        for topic in topics:
            name = kafka.topic(topic)
            left |= {(name, number) for number in consumer.list_topics(name, timeout=20).topics[name].partitions}
        consumer.assign([TopicPartition(name, number, OFFSET_BEGINNING) for name, number in left])
        found = _until_ends(consumer, kafka, left)
    finally:
        consumer.close()
    return sorted(found, key=lambda record: (record.topic, record.timestamp_ms, record.partition, record.offset))


def _until_ends(consumer: Consumer, kafka: KafkaSettings, left: set[tuple[str, int]]) -> list[Record]:
    found: list[Record] = []
    deadline = time.monotonic() + _PATIENCE_S
    while left:
        if time.monotonic() > deadline:
            raise TimeoutError(f"the end of {sorted(left)[:3]} was not reached in time")
        for message in consumer.consume(500, timeout=1.0):
            name, number = str(message.topic()), int(message.partition() or 0)
            if (error := message.error()) is not None:
                if error.code() == KafkaError._PARTITION_EOF:
                    left.discard((name, number))
                elif error.fatal():
                    raise KafkaException(error)
                continue
            headers = tuple((header, value) for header, value in message.headers() or ())
            place = kafka.logical(name), number, int(message.offset() or 0)
            found.append(Record(*place, message.key(), message.value(), headers, message.timestamp()[1]))
    return found
