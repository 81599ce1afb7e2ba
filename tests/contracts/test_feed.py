"""The feed on a real Kafka: nothing missed and nothing twice, whoever reads and however often they are replaced."""

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
from streams.live.catch_up import CatchUp, Unfinished
from streams.live.cursors import read_cursor
from streams.live.log_follower import LiveSettings, LogFeed, open_feed
from streams.settings import KafkaSettings
from streams.topics import FACTS, OUTCOMES
from tests.support.facts import Facts

PATIENCE_S = 60.0
SMALL = LiveSettings(remembered=5, answer_s=PATIENCE_S)
LARGE = LiveSettings(answer_s=PATIENCE_S)


async def prepared(bootstrap: str) -> KafkaSettings:
    """Return settings of topics that are there, with a prefix of their own."""
    kafka = KafkaSettings(bootstrap=bootstrap, prefix=f"f{uuid.uuid4().hex[:8]}.")
    await KafkaAdmin(kafka).create_topics([FACTS, OUTCOMES])
    return kafka


async def say(kafka: KafkaSettings, events: Sequence[Event]) -> None:
    """Produce facts and outcomes as the agents do."""
    async with open_producer(kafka, source="test") as producer:
        for event in events:
            topic = OUTCOMES if isinstance(event, Outcome) else FACTS
            await producer.deliver([outgoing(topic, event, source="test", traceparent=None)])


def lives(owner: str, count: int) -> list[Event]:
    """Return all that is said of some images."""
    found: list[Event] = []
    for _ in range(count):
        image_id = new_image_id()
        found += [*Facts(image_id, owner=owner).all(), ImageCompleted(image_id=image_id, owner=owner)]
    return found


async def hear(
    feed: LogFeed, cursor: str | None, *, image_id: str | None = None, count: int = 0
) -> tuple[list[str], str]:
    """Resume, hear so many events, and be cut off; return their ids, and where to go on."""
    heard: list[str] = []
    async with asyncio.timeout(PATIENCE_S):
        await feed.check()
        async with feed.listening("anna", image_id, read_cursor(cursor)[1] if cursor else None) as listening:
            cursor = cursor or listening.cursor()
            while len(heard) < count:
                told = await listening.next(1.0)
                if told is not None:
                    heard.append(told.what.id)
                    cursor = told.cursor
    assert cursor is not None
    return heard, cursor


@pytest.mark.parametrize("settings", [SMALL, LARGE], ids=["from the log", "from memory"])
async def test_a_listener_cut_off_again_and_again_hears_everything_once(
    kafka: LocalKafka, settings: LiveSettings
) -> None:
    """Two gateways, each killed in turns: of all that was said, before and after, exactly the rest is heard."""
    own = await prepared(kafka.bootstrap)
    chance = random.Random(5)
    said = lives("anna", 6) + lives("ben", 3)
    chance.shuffle(said)
    await say(own, lives("anna", 1))  # long before
    async with open_feed(own, LARGE) as first:
        _, cursor = await hear(first, None)
    mine = {event.id for event in said if event.owner == "anna"}
    early = len([event for event in said[:30] if event.owner == "anna"])
    await say(own, said[:30])
    await say(own, said[20:25])  # said again, as after a crash
    found: list[str] = []
    async with open_feed(own, settings) as other:
        while len(found) < early:
            async with open_feed(own, settings) as one:  # begins anew each time, as after kill -9
                for feed in (one, other):
                    ids, cursor = await hear(feed, cursor, count=min(3, early - len(found)))
                    found += ids
        await say(own, said[30:])
        ids, cursor = await hear(other, cursor, count=len(mine) - len(found))
        found += ids
        nothing, _ = await quiet(other, cursor)
    assert sorted(found) == sorted(mine)
    assert nothing == []


async def quiet(feed: LogFeed, cursor: str) -> tuple[list[str], str]:
    """Return what comes after a position until the feed has nothing more: a fact said now is the last."""
    last = Facts(new_image_id(), owner="anna").resized()
    await say(feed._kafka, [last])
    found: list[str] = []
    while last.id not in found:
        ids, cursor = await hear(feed, cursor, count=1)
        found += ids
    return found[:-1], cursor


async def test_one_job_is_read_back_from_its_own_partitions(kafka: LocalKafka) -> None:
    """A job's listener resumes from the log with its own events alone, in the order they were said."""
    own = await prepared(kafka.bootstrap)
    image_id = new_image_id()
    mine = [*Facts(image_id, owner="anna").all(), ImageCompleted(image_id=image_id, owner="anna")]
    async with open_feed(own, LARGE) as feed:
        _, cursor = await hear(feed, None)
    await say(own, [event for pair in zip(mine, lives("anna", 1), strict=True) for event in pair])
    await say(own, lives("ben", 4))
    async with open_feed(own, SMALL) as feed:
        await feed.check()
        assert not feed.feed.holds(read_cursor(cursor)[1], range(8))
        ids, _ = await hear(feed, cursor, image_id=image_id, count=6)
    assert sorted(ids) == sorted(event.id for event in mine)
    assert [i for i in ids if i != mine[-1].id] == [event.id for event in mine[:-1]]


async def test_what_the_log_no_longer_holds_is_said_to_be_lost(kafka: LocalKafka) -> None:
    """Where records were removed behind a position, or a position lies beyond the end, nobody is left in silence."""
    own = await prepared(kafka.bootstrap)
    async with open_feed(own, LARGE) as feed:
        _, early = await hear(feed, None)
        await say(own, lives("anna", 8))
        _, late = await hear(feed, early, count=48)
    client = AdminClient({"bootstrap.servers": own.bootstrap})
    removed = [Place(own.topic(FACTS.name), partition, OFFSET_END) for partition in range(4)]
    for future in client.delete_records(removed).values():
        await asyncio.to_thread(future.result, PATIENCE_S)
    shape, positions = read_cursor(late)
    beyond = tuple(at + 1000 for at in positions)
    async with open_feed(own, SMALL) as feed:
        for lost in (read_cursor(early)[1], beyond, positions[:-1]):
            with pytest.raises(Lost):
                await feed.check()
                async with asyncio.timeout(PATIENCE_S), feed.listening("anna", None, lost) as listening:
                    await listening.next(1.0)
        assert (await quiet(feed, late))[0] == []
    assert shape == (4, 4)


async def test_reading_back_is_bounded_and_goes_on_where_it_stopped(kafka: LocalKafka) -> None:
    """Who may not be read to any longer is told where it came to, and from there misses nothing."""
    own = await prepared(kafka.bootstrap)
    said = lives("anna", 3)
    async with open_feed(own, LARGE) as feed:
        _, cursor = await hear(feed, None)
    await say(own, said)
    async with open_feed(own, SMALL) as feed:
        await feed.check()
        places = [TopicPartition(own.topic(topic.name), index) for topic in (FACTS, OUTCOMES) for index in range(4)]
        listener = feed.feed.listener("anna")
        back = CatchUp(own, feed.feed, places, listener, read_cursor(cursor)[1], range(8))
        nobody = asyncio.Semaphore(0)
        with pytest.raises(Unfinished):
            await anext(back.told(nobody, 0.05))
        assert back.cursor == cursor
        ids, _ = await hear(feed, back.cursor, count=18)
    assert sorted(ids) == sorted(event.id for event in said)


@pytest.fixture
def own_kafka(tmp_path: Path) -> LocalKafka:
    """Return a Kafka that a test may stop; not started."""
    broker = choose(0)
    return LocalKafka(tmp_path / "kafka", cluster=(Node(1, broker, choose(0, taken={broker})),))


async def test_an_open_stream_outlives_kafka_and_a_new_one_is_refused(own_kafka: LocalKafka) -> None:
    """While Kafka is away nobody new may listen; who listens hears what is said when it is back, and nothing twice."""
    await own_kafka.start()
    try:
        own = await prepared(own_kafka.bootstrap)
        settings = LiveSettings(answer_s=2.0, reconnect_s=0.2)
        async with open_feed(own, settings) as feed:
            async with asyncio.timeout(PATIENCE_S):
                await feed.ready.wait()
            async with feed.listening("anna") as listening:
                before, after = Facts(new_image_id()).resized(), Facts(new_image_id()).resized()
                await say(own, [before])
                told = [await listening.next(PATIENCE_S)]
                await own_kafka.stop()
                with pytest.raises(DependencyUnavailable):
                    async with asyncio.timeout(PATIENCE_S):
                        while True:
                            await feed.check()
                            await asyncio.sleep(0.2)
                await own_kafka.start()
                await say(own, [after])
                told.append(await listening.next(PATIENCE_S))
                assert [one and one.what.id for one in told] == [before.id, after.id]
    finally:
        await own_kafka.stop()
