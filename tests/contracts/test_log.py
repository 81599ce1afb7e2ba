"""Contract of the log: the in-memory log and a real Kafka behave alike, also when workers are killed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.local.kafka import LocalKafka
from schemas.events.envelope import Outgoing
from schemas.events.facts import StageRetrying
from schemas.values import new_image_id
from tests.contracts.logs import InMemory, LogUnderTest, OnKafka
from tests.support.stage_kit import message, uploaded

pytestmark = pytest.mark.lengthy


@pytest.fixture(params=["memory", "kafka"])
def bootstrap(request: pytest.FixtureRequest) -> str | None:
    """The Kafka of this run; None: in memory."""
    if request.param == "memory":
        return None
    kafka: LocalKafka = request.getfixturevalue("kafka")
    return kafka.bootstrap


@pytest.fixture
async def log(bootstrap: str | None, tmp_path: Path) -> AsyncIterator[LogUnderTest]:
    """Each log."""
    under_test: LogUnderTest
    under_test = await OnKafka(bootstrap, tmp_path).prepare() if bootstrap else InMemory(tmp_path)
    yield under_test
    await under_test.close()


async def ids(log: LogUnderTest, topic: str = "image.facts") -> list[str | None]:
    """Return the ids of a topic's events, without those that an event will be tried again."""
    records = await log.records(topic)
    return [record.header("ce_id") for record in records if record.header("ce_type") != StageRetrying.type]


async def test_every_event_has_one_result_and_is_committed(log: LogUnderTest) -> None:
    """Without faults, there are as many results as events, and no lag."""
    await log.send([message(uploaded()) for _ in range(200)])
    await log.start()
    await log.until_idle()
    await log.stop()
    found = await ids(log)
    assert len(found) == len(set(found)) == 200


async def test_events_of_a_key_are_processed_in_order(log: LogUnderTest) -> None:
    """The events of one image are processed one after the other, even if the first is slow."""
    image = new_image_id()
    await log.send(
        [
            message(uploaded(image, generation=g, context={"sleep_s": 0.3 if g == 1 else 0, "note": str(g)}))
            for g in range(1, 6)
        ]
    )
    await log.start()
    await log.until_idle()
    await log.stop()
    notes = [(r.value or b"").split(b'"message":"')[1].split(b'"')[0] for r in await log.records("image.facts")]
    assert notes == [b"1", b"2", b"3", b"4", b"5"]


async def test_a_slow_event_blocks_the_commit_of_later_ones(log: LogUnderTest) -> None:
    """After a kill while the first event of a partition runs, the partition is delivered again from that event."""
    first = uploaded(context={"sleep_s": 30, "note": "slow"})
    await log.send([message(first)])
    await log.send([message(uploaded()) for _ in range(40)])
    await log.start()
    async with asyncio.timeout(60):
        while len(set(await ids(log))) < 40:
            await asyncio.sleep(0.2)
    await asyncio.sleep(1)
    await log.kill()
    with pytest.raises(TimeoutError):
        await _idle_without_worker(log)


async def _idle_without_worker(log: LogUnderTest) -> None:
    if isinstance(log, InMemory):
        if log.log.lag("sanitizer", "image.uploaded"):
            raise TimeoutError
        return
    await log.until_idle(2)


async def test_a_killed_worker_s_events_are_processed_by_the_next(log: LogUnderTest) -> None:
    """After three kills during work, every event has a result, under one id."""
    await log.send([message(uploaded(context={"sleep_s": 0.05})) for _ in range(150)])
    for _ in range(3):
        await log.start()
        before = len(set(await ids(log)))
        async with asyncio.timeout(60):
            while len(set(await ids(log))) < min(before + 20, 150):
                await asyncio.sleep(0.05)
        await log.kill()
    await log.start()
    await log.until_idle(90)
    await log.stop()
    assert len(set(await ids(log))) == 150


async def test_stopping_finishes_events_in_flight(log: LogUnderTest) -> None:
    """On SIGTERM, started events are finished and committed, so that none is repeated."""
    await log.send([message(uploaded(context={"sleep_s": 0.2})) for _ in range(60)])
    await log.start()
    async with asyncio.timeout(60):
        while not await ids(log):
            await asyncio.sleep(0.05)
    await log.stop()
    await log.start()
    await log.until_idle()
    await log.stop()
    found = await ids(log)
    assert len(found) == len(set(found)) == 60


async def test_poison_events_are_dead_lettered(log: LogUnderTest) -> None:
    """Unreadable events, and events that raise, become dead letters byte for byte; others are processed."""
    poison = Outgoing("image.uploaded", b"k", b"\x00\xff", (("ce_type", b"darkroom.image.uploaded.v1"),))
    bug = message(uploaded(context={"act": "raise"}))
    await log.send([poison, bug, *(message(uploaded()) for _ in range(10))])
    await log.start()
    await log.until_idle()
    await log.stop()
    letters = {r.value: r.header("dlq.error.code") for r in await log.records("sanitizer.dead")}
    assert letters == {poison.value: "malformed-event", bug.value: "internal-error"}
    assert len(await ids(log)) == 11


async def test_an_unavailable_dependency_sends_the_event_to_the_delay_topic(log: LogUnderTest) -> None:
    """After the attempts in place the event is delayed, and the next ones are processed."""
    await log.send([message(uploaded(context={"act": "retry"})), message(uploaded())])
    await log.start()
    await log.until_idle()
    await log.stop()
    assert len(await log.records("sanitizer.delay.30s")) == 1
    assert len(await ids(log)) == 1


async def test_null_keys_and_empty_headers_are_accepted(log: LogUnderTest) -> None:
    """The worker continues after an event without key and headers."""
    await log.send([Outgoing("image.uploaded", None, b"{}", ()), message(uploaded())])
    await log.start()
    await log.until_idle()
    await log.stop()
    assert len(await log.records("sanitizer.dead")) == 1
    assert len(await ids(log)) == 1
