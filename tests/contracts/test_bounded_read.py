"""Bounded reads of a real log: transactions, ends, pages."""

from __future__ import annotations

import uuid

import pytest
from confluent_kafka import Producer

from infra.local.kafka import LocalKafka
from streams import topics
from streams.errors import DependencyUnavailable
from streams.kafka import bounded_read
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import open_reader, read_topic
from streams.retries.dead_letter_listing import Place, read_some
from streams.settings import KafkaSettings

AGENTS = ("sanitizer", "resizer")
DEAD = topics.dead_topic("sanitizer")


@pytest.fixture
async def settings(kafka: LocalKafka, monkeypatch: pytest.MonkeyPatch) -> KafkaSettings:
    """Two agents' topics of two partitions; a broker that sends nothing for 3 s is unavailable."""
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=f"b{uuid.uuid4().hex[:8]}.", partitions=2)
    await KafkaAdmin(settings).create_topics(topic for agent in AGENTS for topic in topics.agent_topics(agent))
    monkeypatch.setattr(bounded_read, "ANSWER_S", 3.0)
    return settings


def _write(settings: KafkaSettings, topic: str, values: list[bytes], *, transaction: bool = False) -> None:
    """Append records, alternating between two partitions; a transaction ends each partition with a marker."""
    name = f"{settings.prefix}{uuid.uuid4().hex}"
    more = {"transactional.id": name} if transaction else {}
    producer = Producer({"bootstrap.servers": settings.bootstrap, **more})
    if transaction:
        producer.init_transactions(30)
        producer.begin_transaction()
    for number, value in enumerate(values):
        producer.produce(settings.topic(topic), value, partition=number % 2)
    if transaction:
        producer.commit_transaction(30)
    assert producer.flush(30) == 0


async def test_a_topic_that_ends_in_transaction_markers_is_read_to_its_end(settings: KafkaSettings) -> None:
    """Markers before, between and after records are skipped; every record is returned once."""
    _write(settings, DEAD, [b"a", b"b"], transaction=True)
    _write(settings, DEAD, [b"c", b"d"])
    _write(settings, DEAD, [b"e", b"f"], transaction=True)
    found = read_topic(settings, DEAD)
    assert sorted(record.value or b"" for record in found) == [b"a", b"b", b"c", b"d", b"e", b"f"]
    assert {record.topic for record in found} == {DEAD}


async def test_a_read_stops_at_the_ends_of_its_start(settings: KafkaSettings) -> None:
    """Records written during a read are left to the next one, which starts where this one ended."""
    _write(settings, DEAD, [b"a", b"b"])
    with open_reader(settings) as reader:
        spans = list(reader.spans(DEAD))
        _write(settings, DEAD, [b"c", b"d"])
        assert {record.value for record in reader.read(spans)} == {b"a", b"b"}
        assert [(span.next, span.end) for span in spans] == [(1, 1), (1, 1)]
        later = list(reader.spans(DEAD))
        for span, earlier in zip(later, spans, strict=True):
            span.next = earlier.next
        assert {record.value for record in reader.read(later)} == {b"c", b"d"}


async def test_offsets_of_a_time_are_the_first_after_it_or_the_end(settings: KafkaSettings) -> None:
    """The epoch is before every record, the year 2100 after the last."""
    _write(settings, DEAD, [b"a", b"b", b"c"])
    with open_reader(settings) as reader:
        spans = list(reader.spans(DEAD))
        assert reader.offsets_at(spans, 0) == [0, 0]
        assert reader.offsets_at(spans, 4_102_444_800_000) == [2, 1]


async def test_pages_of_dead_letters_list_each_once(settings: KafkaSettings) -> None:
    """Pages of one record go through partitions, agents and transaction markers, and end."""
    _write(settings, DEAD, [b"a", b"b"], transaction=True)
    _write(settings, DEAD, [b"c"])
    _write(settings, topics.dead_topic("resizer"), [b"d"], transaction=True)
    place: Place | None = Place(AGENTS[0])
    found: list[bytes] = []
    while place is not None:
        records, place = read_some(settings, AGENTS, place, 1)
        assert len(records) <= 1
        found += [record.value or b"" for record in records]
    assert found == [b"a", b"c", b"b", b"d"]


async def test_without_kafka_a_read_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that does not answer is DependencyUnavailable."""
    monkeypatch.setattr(bounded_read, "ANSWER_S", 1.0)
    with pytest.raises(DependencyUnavailable):
        read_topic(KafkaSettings(bootstrap="127.0.0.1:9"), DEAD)
