"""Bounded reads: the records of some partitions, from given offsets up to the ends these partitions have now.

The consumer joins no group's assignment and commits nothing. Transaction control records are skipped; a partition that
ends in them is complete once the broker reports its end.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from schemas.events.envelope import Record
from streams.errors import DependencyUnavailable
from streams.kafka.access_errors import refused
from streams.kafka.security import confluent_configuration
from streams.settings import KafkaSettings

ANSWER_S = 10.0  # for one request to the broker, and between two records
_BUFFER_BYTES = 64_000_000


@dataclass(slots=True)
class Span:
    """A stretch of one partition of a logical topic: the offset to read next, and the end, exclusive."""

    topic: str
    partition: int
    next: int
    end: int

    @property
    def complete(self) -> bool:
        """Whether every record was read."""
        return self.next >= self.end


class BoundedReader:
    """Reads spans of partitions. Blocks. Calls raise KafkaException or DependencyUnavailable."""

    def __init__(self, consumer: Consumer, kafka: KafkaSettings) -> None:
        self._consumer = consumer
        self._kafka = kafka

    def spans(self, topic: str, *, first: int = 0) -> Iterator[Span]:
        """Yield a span over all records of each partition of a logical topic, in order, from partition `first` on."""
        name = self._kafka.topic(topic)
        known = self._consumer.list_topics(name, timeout=ANSWER_S).topics.get(name)
        if known is None:  # a broker that has just restarted may not know its topics yet
            raise DependencyUnavailable(f"the broker does not know {name}")
        if known.error is not None and known.error.code() == KafkaError.TOPIC_AUTHORIZATION_FAILED:
            raise KafkaException(known.error)
        for number in sorted(known.partitions):
            if number >= first:
                place = TopicPartition(name, number)
                low, high = self._consumer.get_watermark_offsets(place, timeout=ANSWER_S)
                yield Span(topic, number, low, high)

    def offsets_at(self, spans: Collection[Span], unix_ms: int) -> list[int]:
        """Return, for each span, the offset of the first record at or after a time; its end if there is none."""
        wanted = [TopicPartition(self._kafka.topic(span.topic), span.partition, unix_ms) for span in spans]
        found = {
            (place.topic, place.partition): place.offset
            for place in self._consumer.offsets_for_times(wanted, timeout=ANSWER_S)
        }
        offsets = [found[place.topic, place.partition] for place in wanted]
        return [offset if offset >= 0 else span.end for span, offset in zip(spans, offsets, strict=True)]

    def read(self, spans: Collection[Span], *, limit_s: float | None = None) -> Iterator[Record]:
        """Yield the records of spans and advance each span's `next`, until all are complete.

        With `limit_s`, stops after that many seconds; without, raises DependencyUnavailable if the broker sends
        nothing for ANSWER_S.
        """
        left = {(self._kafka.topic(span.topic), span.partition): span for span in spans if not span.complete}
        self._consumer.assign([TopicPartition(*place, span.next) for place, span in left.items()])
        deadline = None if limit_s is None else time.monotonic() + limit_s
        while left and (deadline is None or time.monotonic() < deadline):
            message = self._consumer.poll(ANSWER_S if deadline is None else 1.0)
            if message is None:
                if deadline is None:
                    topics = ", ".join(sorted({span.topic for span in left.values()}))
                    raise DependencyUnavailable(f"{topics}: the broker stopped answering before the end was read")
                continue
            error = message.error()
            if error is not None and error.code() != KafkaError._PARTITION_EOF:
                raise KafkaException(error)
            place = (str(message.topic()), int(message.partition() or 0))
            span = left.get(place)
            if span is None:  # written after its span was complete
                continue
            offset = int(message.offset() or 0)  # at the end of a partition: the offset that follows its last record
            span.next = min(offset if error is not None else offset + 1, span.end)
            if span.complete:
                del left[place]
            if error is None and offset < span.end:
                yield _record(message, span, offset)


@contextmanager
def open_reader(kafka: KafkaSettings, *, buffer_bytes: int = _BUFFER_BYTES) -> Iterator[BoundedReader]:
    """Open a reader that prefetches at most `buffer_bytes`. Raises DependencyUnavailable, also from its body."""
    happened: list[KafkaError] = []
    consumer = Consumer(
        {
            **confluent_configuration(kafka),
            "error_cb": happened.append,
            "group.id": kafka.group("reader"),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "queued.max.messages.kbytes": buffer_bytes // 1000,
        }
    )
    try:
        yield BoundedReader(consumer, kafka)
    except KafkaException as error:
        consumer.poll(0)  # passes what happened meanwhile to `error_cb`
        raise refused(kafka, error, happened) or DependencyUnavailable(f"cannot read the log: {error}") from error
    finally:
        consumer.close()


def read_topic(kafka: KafkaSettings, topic: str) -> list[Record]:
    """Return all records of a logical topic, oldest first. Blocks. Raises DependencyUnavailable."""
    with open_reader(kafka) as reader:
        found = list(reader.read(list(reader.spans(topic))))
    return sorted(found, key=lambda record: (record.timestamp_ms, record.partition, record.offset))


def _record(message: Message, span: Span, offset: int) -> Record:
    headers = tuple((name, value) for name, value in message.headers() or ())
    return Record(span.topic, span.partition, offset, message.key(), message.value(), headers, message.timestamp()[1])
