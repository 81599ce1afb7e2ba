"""Live feed on a real Kafka: no event missed or repeated across reconnects and restarts."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections.abc import Sequence
from pathlib import Path

import pytest
from aiokafka import TopicPartition
from confluent_kafka import OFFSET_END
from confluent_kafka import TopicPartition as Place
from confluent_kafka.admin import AdminClient

from infra.local.kafka import LocalKafka, Node
from infra.local.ports import choose
from schemas.events.envelope import Event
from schemas.events.outcomes import ImageCompleted, Outcome
from schemas.values import new_image_id
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.kafka.messages import outgoing
from streams.kafka.producer import open_producer
from streams.live.broadcast import Lost
from streams.live.catch_up import CatchUp, CatchUpIncomplete
from streams.live.cursors import read_cursor
from streams.live.log_follower import LiveSettings, LogFeed, open_feed
from streams.settings import KafkaSettings
from streams.topics import FACTS, OUTCOMES
from tests.support.facts import Facts

TIMEOUT_S = 60.0
SMALL = LiveSettings(remembered=5, answer_s=TIMEOUT_S)
LARGE = LiveSettings(answer_s=TIMEOUT_S)


async def prepared(bootstrap: str) -> KafkaSettings:
    """Create the topics under a unique prefix; return their settings."""
    kafka = KafkaSettings(bootstrap=bootstrap, prefix=f"f{uuid.uuid4().hex[:8]}.")
    await KafkaAdmin(kafka).create_topics([FACTS, OUTCOMES])
    return kafka


async def produce(kafka: KafkaSettings, events: Sequence[Event]) -> None:
    """Produce facts and outcomes as the agents do."""
    async with open_producer(kafka, source="test") as producer:
        for event in events:
            topic = OUTCOMES if isinstance(event, Outcome) else FACTS
            await producer.deliver([outgoing(topic, event, source="test", traceparent=None)])


def events_of(owner: str, count: int) -> list[Event]:
    """Return all events of some images."""
    found: list[Event] = []
    for _ in range(count):
        image_id = new_image_id()
        found += [*Facts(image_id, owner=owner).all(), ImageCompleted(image_id=image_id, owner=owner)]
    return found


async def receive(
    feed: LogFeed, cursor: str | None, *, image_id: str | None = None, count: int = 0
) -> tuple[list[str], str]:
    """Resume, receive `count` events and disconnect; return their ids and the cursor."""
    received: list[str] = []
    async with asyncio.timeout(TIMEOUT_S):
        await feed.check()
        async with feed.subscribe("anna", image_id, read_cursor(cursor)[1] if cursor else None) as subscription:
            cursor = cursor or subscription.cursor()
            while len(received) < count:
                delivery = await subscription.next(1.0)
                if delivery is not None:
                    received.append(delivery.what.id)
                    cursor = delivery.cursor
    assert cursor is not None
    return received, cursor


@pytest.mark.parametrize("settings", [SMALL, LARGE], ids=["from the log", "from memory"])
async def test_a_listener_that_reconnects_receives_every_event_once(kafka: LocalKafka, settings: LiveSettings) -> None:
    """Two gateways, restarted one after the other: each event is received exactly once."""
    own = await prepared(kafka.bootstrap)
    shuffler = random.Random(5)
    events = events_of("anna", 6) + events_of("ben", 3)
    shuffler.shuffle(events)
    await produce(own, events_of("anna", 1))  # earlier
    async with open_feed(own, LARGE) as first:
        _, cursor = await receive(first, None)
    mine = {event.id for event in events if event.owner == "anna"}
    early = len([event for event in events[:30] if event.owner == "anna"])
    await produce(own, events[:30])
    await produce(own, events[20:25])  # repeated, as after a crash
    found: list[str] = []
    async with open_feed(own, settings) as other:
        while len(found) < early:
            async with open_feed(own, settings) as one:  # a new feed each time, as after kill -9
                for feed in (one, other):
                    ids, cursor = await receive(feed, cursor, count=min(3, early - len(found)))
                    found += ids
        await produce(own, events[30:])
        ids, cursor = await receive(other, cursor, count=len(mine) - len(found))
        found += ids
        nothing, _ = await quiet(other, cursor)
    assert sorted(found) == sorted(mine)
    assert nothing == []


async def quiet(feed: LogFeed, cursor: str) -> tuple[list[str], str]:
    """Return the events after a position, up to a fact produced now."""
    last = Facts(new_image_id(), owner="anna").resized()
    await produce(feed._kafka, [last])
    found: list[str] = []
    while last.id not in found:
        ids, cursor = await receive(feed, cursor, count=1)
        found += ids
    return found[:-1], cursor


async def test_a_job_catches_up_from_its_own_partitions(kafka: LocalKafka) -> None:
    """A job's listener resumes from the log with its own events, in order."""
    own = await prepared(kafka.bootstrap)
    image_id = new_image_id()
    mine = [*Facts(image_id, owner="anna").all(), ImageCompleted(image_id=image_id, owner="anna")]
    async with open_feed(own, LARGE) as feed:
        _, cursor = await receive(feed, None)
    await produce(own, [event for pair in zip(mine, events_of("anna", 1), strict=True) for event in pair])
    await produce(own, events_of("ben", 4))
    async with open_feed(own, SMALL) as feed:
        await feed.check()
        assert not feed.feed.covers(read_cursor(cursor)[1], range(8))
        ids, _ = await receive(feed, cursor, image_id=image_id, count=6)
    assert sorted(ids) == sorted(event.id for event in mine)
    assert [i for i in ids if i != mine[-1].id] == [event.id for event in mine[:-1]]


async def test_a_position_outside_the_log_is_lost(kafka: LocalKafka) -> None:
    """Positions whose records were removed, or that lie beyond the end, raise Lost."""
    own = await prepared(kafka.bootstrap)
    async with open_feed(own, LARGE) as feed:
        _, early = await receive(feed, None)
        await produce(own, events_of("anna", 8))
        _, late = await receive(feed, early, count=48)
    client = AdminClient({"bootstrap.servers": own.bootstrap})
    removed = [Place(own.topic(FACTS.name), partition, OFFSET_END) for partition in range(4)]
    for future in client.delete_records(removed).values():
        await asyncio.to_thread(future.result, TIMEOUT_S)
    shape, positions = read_cursor(late)
    beyond = tuple(at + 1000 for at in positions)
    async with open_feed(own, SMALL) as feed:
        for lost in (read_cursor(early)[1], beyond, positions[:-1]):
            with pytest.raises(Lost):
                await feed.check()
                async with asyncio.timeout(TIMEOUT_S), feed.subscribe("anna", None, lost) as subscription:
                    await subscription.next(1.0)
        assert (await quiet(feed, late))[0] == []
    assert shape == (4, 4)


async def test_catch_up_is_limited_and_can_be_resumed(kafka: LocalKafka) -> None:
    """A catch-up over its time limit raises with a cursor that misses nothing."""
    own = await prepared(kafka.bootstrap)
    events = events_of("anna", 3)
    async with open_feed(own, LARGE) as feed:
        _, cursor = await receive(feed, None)
    await produce(own, events)
    async with open_feed(own, SMALL) as feed:
        await feed.check()
        places = [TopicPartition(own.topic(topic.name), index) for topic in (FACTS, OUTCOMES) for index in range(4)]
        listener = feed.feed.listener("anna")
        back = CatchUp(own, feed.feed, places, listener, read_cursor(cursor)[1], range(8))
        no_slots = asyncio.Semaphore(0)
        with pytest.raises(CatchUpIncomplete):
            await anext(back.deliveries(no_slots, 0.05))
        assert back.cursor == cursor
        ids, _ = await receive(feed, back.cursor, count=18)
    assert sorted(ids) == sorted(event.id for event in events)


@pytest.fixture
def own_kafka(tmp_path: Path) -> LocalKafka:
    """A Kafka that the test starts and stops."""
    broker = choose(0)
    return LocalKafka(tmp_path / "kafka", cluster=(Node(1, broker, choose(0, taken={broker})),))


async def test_an_open_stream_outlives_kafka_and_a_new_one_is_refused(own_kafka: LocalKafka) -> None:
    """While Kafka is unavailable, new streams are refused; open ones continue after its return, without repeats."""
    await own_kafka.start()
    try:
        own = await prepared(own_kafka.bootstrap)
        settings = LiveSettings(answer_s=2.0, reconnect_s=0.2)
        async with open_feed(own, settings) as feed:
            async with asyncio.timeout(TIMEOUT_S):
                await feed.ready.wait()
            async with feed.subscribe("anna") as subscription:
                before, after = Facts(new_image_id()).resized(), Facts(new_image_id()).resized()
                await produce(own, [before])
                deliveries = [await subscription.next(TIMEOUT_S)]
                await own_kafka.stop()
                with pytest.raises(DependencyUnavailable):
                    async with asyncio.timeout(TIMEOUT_S):
                        while True:
                            await feed.check()
                            await asyncio.sleep(0.2)
                await own_kafka.start()
                await produce(own, [after])
                deliveries.append(await subscription.next(TIMEOUT_S))
                assert [one and one.what.id for one in deliveries] == [before.id, after.id]
    finally:
        await own_kafka.stop()
