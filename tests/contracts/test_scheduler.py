"""Scheduler on a real Kafka: admission, order, reruns, dead letters, rebalances."""

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

TIMEOUT_S = 120.0
UNTIMED = LaneSettings(starve_s=3600, slot_s=3600, quiet_s=0)  # no timeout expires


@dataclass(slots=True)
class Lane:
    """A bulk lane with any number of schedulers."""

    kafka: KafkaSettings
    producer: EventProducer
    lanes: LaneSettings = UNTIMED
    running: dict[Scheduler, asyncio.Task[None]] = field(default_factory=dict)

    async def start(self) -> Scheduler:
        """Start a scheduler and wait until it is ready."""
        scheduler = Scheduler(self.kafka, self.lanes, self.producer, HealthBoard())
        task = self.running[scheduler] = asyncio.create_task(scheduler.run())
        await until(lambda: scheduler.ready.is_set() or task.done(), "a scheduler that is ready")
        if task.done():
            await task
        return scheduler

    async def stop(self, scheduler: Scheduler) -> None:
        """Stop a scheduler, as by SIGTERM."""
        task = self.running.pop(scheduler)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def records(self, topic: str) -> list[Record]:
        """Return all records of a topic."""
        return await asyncio.to_thread(read_topic, self.kafka, topic)

    async def forwarded(self) -> list[Record]:
        """Return the events forwarded to the pipeline."""
        return [r for r in await self.records(UPLOADED.name) if r.header(LANE_TARGET_HEADER) is not None]

    async def end(self, *image_ids: str) -> None:
        """Produce the outcome of images, as the indexer does."""
        await self.producer.deliver(
            [outgoing(topics.OUTCOMES, ImageCompleted(image_id=i), source="test", traceparent=None) for i in image_ids]
        )

    async def until_all_ended(self, count: int) -> list[Record]:
        """Act as the pipeline: end forwarded images until `count` have ended; return all forwarded events."""
        ended: set[str] = set()
        async with asyncio.timeout(TIMEOUT_S):
            while len(ended) < count:
                new = {r.header("ce_subject") or "" for r in await self.forwarded()} - ended
                await self.end(*new)
                ended |= new
                await asyncio.sleep(0.1)
        return await self.forwarded()

    async def until_committed(self) -> None:
        """Wait until the bulk lane has no lag."""
        async with asyncio.timeout(TIMEOUT_S):
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
        async with asyncio.timeout(TIMEOUT_S):
            while not happened():
                await asyncio.sleep(0.02)
    except TimeoutError:
        pytest.fail(f"not within {TIMEOUT_S:.0f} s: {what}")


@asynccontextmanager
async def bulk_lane(kafka: LocalKafka, *, partitions: int = 1) -> AsyncIterator[Lane]:
    """Create the topics under a unique prefix; stop all schedulers at the end."""
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
    """Return an event of an owner, and its message in the bulk lane."""
    event = uploaded(owner=owner)
    return event, in_bulk(message(event))


async def test_owners_are_served_round_robin_and_in_order(kafka: LocalKafka) -> None:
    """Owners behind another's backlog get every second or third place; events of one owner keep their order."""
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


async def test_nothing_is_admitted_beside_an_interactive_image(kafka: LocalKafka) -> None:
    """While an interactive image is in the pipeline, the bulk lane waits for its outcome."""
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


async def test_deleted_images_take_no_slot(kafka: LocalKafka) -> None:
    """Images deleted while in the bulk lane, which never get an outcome, do not block others."""
    async with bulk_lane(kafka) as lane:
        scheduler = await lane.start()
        sent = [waiting("anna") for _ in range(12)]
        await lane.producer.deliver([m for _, m in sent])
        await until(lambda: scheduler.waiting == 10, "two being admitted")
        deleted = [outgoing(topics.OUTCOMES, ImageDeleted(image_id=event.image_id), source="test", traceparent=None)
                   for event, _ in sent[2:10]]  # fmt: skip
        await lane.producer.deliver(deleted)
        await lane.end(sent[0][0].image_id, sent[1][0].image_id)
        await until(lambda: scheduler.waiting == 0, "everything being admitted")
        assert len(await lane.forwarded()) == len(sent)


async def test_a_rerun_goes_to_its_agent_and_its_fact_frees_the_slot(kafka: LocalKafka) -> None:
    """Reruns go to the agent's retry topic within the window; each fact of the stage admits the next."""
    async with bulk_lane(kafka) as lane:
        scheduler = await lane.start()
        ours = [Facts(str(uuid.uuid4())) for _ in range(6)]
        target = retry_topic("ocr")
        await lane.producer.deliver([in_bulk(message(facts.sanitized(), target)) for facts in ours])
        await until(lambda: scheduler.waiting == 4, "two of six being admitted")
        by_id = {facts.sanitized().image_id: facts for facts in ours}
        done: set[str] = set()
        async with asyncio.timeout(TIMEOUT_S):
            while len(done) < 6:
                new = {r.header("ce_subject") or "" for r in await lane.records(target)} - done
                facts = [(topics.FACTS, by_id[image_id].text(), "darkroom/ocr") for image_id in new]
                facts += [(topics.FACTS, by_id[image_id].resized(), "darkroom/resizer") for image_id in by_id]
                await lane.producer.deliver([outgoing(t, e, source=s, traceparent=None) for t, e, s in facts])
                done |= new
                await asyncio.sleep(0.1)
        assert not await lane.forwarded()


async def test_an_event_without_an_allowed_target_is_dead_lettered_and_can_be_replayed(
    kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Events with an unknown target, and unreadable ones, become dead letters; others are forwarded."""
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
            store = DeadLetterStore(lane.kafka, files, lane.producer)
            assert await store.replay(SCHEDULER, Selection(code="unknown-event"), dry_run=False) == 1
        assert (await lane.records(BULK.name))[-1].value == nowhere.value


async def test_a_restart_forwards_the_rest(kafka: LocalKafka) -> None:
    """After a stop, a new scheduler forwards all uncommitted events."""
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
    """Across a join and a leave of a scheduler, every event is forwarded."""
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
