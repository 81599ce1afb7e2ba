"""The scheduler on a real Kafka: who goes on, when, in which order, and what becomes of what may not."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from infra.local.kafka import LocalKafka
from schemas.events.envelope import Outgoing, Record
from schemas.events.intake import ImageUploaded
from schemas.events.outcomes import ImageCompleted, ImageDeleted
from streams import topics
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import read_topic
from streams.kafka.messages import in_bulk, outgoing
from streams.kafka.producer import EventProducer, open_producer
from streams.lanes.bulk_scheduler import Scheduler
from streams.object_store.factory import open_files
from streams.retries.dead_letters import DeadLetterStore, Selection
from streams.settings import FilesSettings, KafkaSettings, LaneSettings
from streams.telemetry.health_board import HealthBoard
from streams.topics import AGENTS, BULK, LANE_TARGET_HEADER, SCHEDULER, UPLOADED, retry_topic
from tests.support.facts import Facts
from tests.support.stage_kit import message, uploaded

PATIENCE_S = 120.0
PATIENT = LaneSettings(starve_s=3600, slot_s=3600, quiet_s=0)  # nothing happens because time has passed


@dataclass(slots=True)
class Lane:
    """A bulk lane of its own, with as many schedulers as a test wants."""

    kafka: KafkaSettings
    producer: EventProducer
    lanes: LaneSettings = PATIENT
    running: dict[Scheduler, asyncio.Task[None]] = field(default_factory=dict)

    async def start(self) -> Scheduler:
        """Start a scheduler, and wait until it is ready."""
        scheduler = Scheduler(self.kafka, self.lanes, self.producer, HealthBoard())
        task = self.running[scheduler] = asyncio.create_task(scheduler.run())
        await until(lambda: scheduler.ready.is_set() or task.done(), "a scheduler that is ready")
        if task.done():
            await task
        return scheduler

    async def stop(self, scheduler: Scheduler) -> None:
        """End a scheduler as SIGTERM does."""
        task = self.running.pop(scheduler)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def records(self, topic: str) -> list[Record]:
        """Return all records of a topic."""
        return await asyncio.to_thread(read_topic, self.kafka, topic)

    async def forwarded(self) -> list[Record]:
        """Return what was let into the pipeline."""
        return [r for r in await self.records(UPLOADED.name) if r.header(LANE_TARGET_HEADER) is not None]

    async def end(self, *image_ids: str) -> None:
        """Say the outcome of images, as the indexer does."""
        await self.producer.deliver(
            [outgoing(topics.OUTCOMES, ImageCompleted(image_id=i), source="test", traceparent=None) for i in image_ids]
        )

    async def until_all_ended(self, count: int) -> list[Record]:
        """Be the pipeline: end whatever is let in until `count` images were; return all that was let in."""
        ended: set[str] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(ended) < count:
                new = {r.header("ce_subject") or "" for r in await self.forwarded()} - ended
                await self.end(*new)
                ended |= new
                await asyncio.sleep(0.1)
        return await self.forwarded()

    async def until_committed(self) -> None:
        """Wait until nothing of the bulk lane is uncommitted."""
        async with asyncio.timeout(PATIENCE_S):
            while await self._lag():
                await asyncio.sleep(0.2)

    async def _lag(self) -> int:
        try:
            return await KafkaAdmin(self.kafka).lag(SCHEDULER, [BULK.name])
        except DependencyUnavailable:  # the coordinator of a new group may still be loading
            return -1


async def until(happened: Callable[[], bool], what: str) -> None:
    """Wait until something happened; fail naming it."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not happened():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {PATIENCE_S:.0f} s: {what}")


@asynccontextmanager
async def bulk_lane(kafka: LocalKafka, *, partitions: int = 1) -> AsyncIterator[Lane]:
    """Make the topics under a prefix of their own; at the end no scheduler is left."""
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=f"t{uuid.uuid4().hex[:8]}.", partitions=partitions)
    wanted = [*topics.PIPELINE, topics.SCHEDULER_DEAD, *(t for agent in AGENTS for t in topics.agent_topics(agent))]
    await KafkaAdmin(settings).create_topics(wanted)
    async with open_producer(settings, source="test") as producer:
        lane = Lane(settings, producer)
        try:
            yield lane
        finally:
            for scheduler in list(lane.running):
                await lane.stop(scheduler)


def waiting(owner: str) -> tuple[ImageUploaded, Outgoing]:
    """Return an event of an owner, and the message that puts it into the bulk lane."""
    event = uploaded(owner=owner)
    return event, in_bulk(message(event))


async def test_owners_take_turns_and_each_keeps_its_order(kafka: LocalKafka) -> None:
    """Whoever comes behind a backlog of another has every second or third turn, and nobody's own events overtake."""
    async with bulk_lane(kafka) as lane:
        sent = [waiting(owner) for owner in ("anna",) * 30 + ("bert",) * 5 + ("cleo",) * 5]
        await lane.producer.deliver([m for _, m in sent])
        scheduler = await lane.start()
        at_once = 2  # the first window
        await until(lambda: scheduler.waiting == len(sent) - at_once, "everything being read ahead")
        found = await lane.until_all_ended(len(sent))
    assert len(found) == len(sent)
    owner_of = {event.image_id: event.owner for event, _ in sent}
    order = [record.header("ce_subject") or "" for record in found]
    for owner in ("anna", "bert", "cleo"):
        assert [i for i in order if owner_of[i] == owner] == [e.image_id for e, _ in sent if e.owner == owner]
    assert {owner_of[image_id] for image_id in order[at_once + 15 :]} == {"anna"}
    messages = {event.image_id: m for event, m in sent}
    for record in found:
        original = messages[record.header("ce_subject") or ""]
        assert (record.key, record.value, record.headers) == (original.key, original.value, original.headers)


async def test_nothing_joins_an_interactive_image_until_it_has_ended(kafka: LocalKafka) -> None:
    """While an image that did not wait in the bulk lane is in the pipeline, the bulk lane waits for its outcome."""
    async with bulk_lane(kafka) as lane:
        scheduler = await lane.start()
        single = uploaded()
        await lane.producer.deliver([message(single)])
        await until(lambda: scheduler.interactive == 1, "the interactive image being seen")
        sent = [waiting("anna") for _ in range(5)]
        await lane.producer.deliver([m for _, m in sent])
        await until(lambda: scheduler.waiting == 5, "the bulk events being read")
        assert not await lane.forwarded()
        await lane.end(single.image_id)
        await lane.until_all_ended(5)


async def test_what_was_deleted_while_it_waited_takes_no_place(kafka: LocalKafka) -> None:
    """Images deleted in the bulk lane, which no agent will ever speak of, do not keep the others waiting."""
    async with bulk_lane(kafka) as lane:
        scheduler = await lane.start()
        sent = [waiting("anna") for _ in range(12)]
        await lane.producer.deliver([m for _, m in sent])
        await until(lambda: scheduler.waiting == 10, "two being let in")
        deleted = [outgoing(topics.OUTCOMES, ImageDeleted(image_id=event.image_id), source="test", traceparent=None)
                   for event, _ in sent[2:10]]  # fmt: skip
        await lane.producer.deliver(deleted)
        await lane.end(sent[0][0].image_id, sent[1][0].image_id)
        await until(lambda: scheduler.waiting == 0, "everything being let in")
        assert len(await lane.forwarded()) == len(sent)


async def test_a_rerun_goes_to_its_agent_and_makes_room_with_its_fact(kafka: LocalKafka) -> None:
    """Reruns go to the agent's retry topic, few at once; each fact of that stage lets the next one in."""
    async with bulk_lane(kafka) as lane:
        scheduler = await lane.start()
        ours = [Facts(str(uuid.uuid4())) for _ in range(6)]
        target = retry_topic("ocr")
        await lane.producer.deliver([in_bulk(message(facts.sanitized(), target)) for facts in ours])
        await until(lambda: scheduler.waiting == 4, "two of six being let in")
        by_id = {facts.sanitized().image_id: facts for facts in ours}
        said: set[str] = set()
        async with asyncio.timeout(PATIENCE_S):
            while len(said) < 6:
                new = {r.header("ce_subject") or "" for r in await lane.records(target)} - said
                facts = [(topics.FACTS, by_id[image_id].text(), "darkroom/ocr") for image_id in new]
                facts += [(topics.FACTS, by_id[image_id].resized(), "darkroom/resizer") for image_id in by_id]
                await lane.producer.deliver([outgoing(t, e, source=s, traceparent=None) for t, e, s in facts])
                said |= new
                await asyncio.sleep(0.1)
        assert not await lane.forwarded()


async def test_what_may_go_nowhere_is_set_aside_and_can_be_replayed(
    kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Events with an unknown target, and what is no event, become dead letters; the others go on behind them."""
    async with bulk_lane(kafka) as lane:
        scheduler = await lane.start()
        nowhere = message(uploaded(), BULK.name, **{LANE_TARGET_HEADER: "image.facts"})
        garbage = Outgoing(BULK.name, b"key", b"\xff\x00 no event", (("odd", b"\xff"),))
        event, good = waiting("anna")
        await lane.producer.deliver([nowhere, garbage, good])
        assert [r.header("ce_subject") for r in await lane.until_all_ended(1)] == [event.image_id]
        await lane.until_committed()
        letters = await lane.records(topics.SCHEDULER_DEAD.name)
        assert [(r.key, r.value) for r in letters] == [(m.key, m.value) for m in (nowhere, garbage)]
        assert [r.headers[: len(m.headers)] for r, m in zip(letters, (nowhere, garbage), strict=True)] == [
            nowhere.headers, garbage.headers,
        ]  # fmt: skip
        assert [r.header("dlq.error.code") for r in letters] == ["unknown-event", "malformed-event"]
        await lane.stop(scheduler)
        async with open_files(FilesSettings(directory=tmp_path_factory.mktemp("files"))) as files:
            office = DeadLetterStore(lane.kafka, files, lane.producer)
            assert await office.replay(SCHEDULER, Selection(code="unknown-event"), dry_run=False) == 1
        assert (await lane.records(BULK.name))[-1].value == nowhere.value


async def test_a_restart_forwards_what_is_left(kafka: LocalKafka) -> None:
    """A scheduler that ends in the middle of its work is followed by one that forwards everything not yet committed."""
    async with bulk_lane(kafka, partitions=2) as lane:
        sent = [waiting(f"owner{number % 3}") for number in range(40)]
        await lane.producer.deliver([m for _, m in sent])
        first = await lane.start()
        await lane.until_all_ended(10)
        await lane.stop(first)
        before = {r.header("ce_subject") for r in await lane.forwarded()}
        assert len(before) < len(sent)
        await lane.start()
        found = await lane.until_all_ended(len(sent))
        assert {r.header("ce_subject") for r in found} == {event.image_id for event, _ in sent}
        await lane.until_committed()


async def test_schedulers_share_the_lane(kafka: LocalKafka) -> None:
    """A scheduler that joins takes partitions over, one that leaves gives them back, and everything is forwarded."""
    async with bulk_lane(kafka, partitions=4) as lane:
        sent = [waiting(f"owner{number % 3}") for number in range(60)]
        await lane.producer.deliver([m for _, m in sent])
        first = await lane.start()
        await lane.until_all_ended(10)
        await lane.start()
        await lane.until_all_ended(30)
        await lane.stop(first)
        found = await lane.until_all_ended(len(sent))
        assert {r.header("ce_subject") for r in found} == {event.image_id for event, _ in sent}
        await lane.until_committed()
