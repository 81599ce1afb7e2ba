"""Scheduler: forwards events of the bulk lane to the pipeline while it has room, round-robin over owners.

A plain consumer in the router's process. It reads ahead, so that no owner waits for another's backlog; forwards byte
for byte; awaits each delivery; commits the contiguous finished prefix of each partition. After a crash, events
forwarded ahead of older ones are forwarded again, which is harmless like any repeat.

Replicas share the partitions; each has its own window, and all see the same interactive images.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from schemas.events.envelope import Outgoing, Record, now
from schemas.events.facts import StageRetrying
from schemas.events.outcomes import ImageDeleted
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyUnavailable, Malformed
from streams.kafka.offset_ledger import Ledger, Slice
from streams.kafka.producer import Deliverer
from streams.kafka.security import aiokafka_arguments
from streams.lanes.admission_control import Admission, Slot
from streams.lanes.bulk_lane import BulkEvent, read_bulk
from streams.lanes.fair_queue import FairQueue
from streams.retries.dead_letters import Failure, dead_letter
from streams.settings import KafkaSettings, LaneSettings
from streams.telemetry import metrics
from streams.telemetry.health_board import Condition, HealthBoard
from streams.topics import BULK, FACTS, FETCH_REQUESTED, LANE_TARGET_HEADER, OUTCOMES, SCHEDULER, UPLOADED

log = structlog.get_logger(__name__)

T = TypeVar("T")

VERSION = "1"
POLL_S = 0.25
COMMIT_S = 1.0
MAX_BATCH = 100  # events of one delivery
REMEMBERED = 100_000  # deleted images
_SOURCE = "darkroom/"  # ce_source of an agent: this, then its name


@dataclass(frozen=True, slots=True)
class _Waiting:
    where: Slice
    offset: int
    event: BulkEvent


class Scheduler:
    """One member of the scheduler's consumer group."""

    def __init__(self, settings: KafkaSettings, lanes: LaneSettings, deliverer: Deliverer, health: HealthBoard) -> None:
        self._settings = settings
        self._lanes = lanes
        self._deliverer = deliverer
        self._health = health
        self._admission = Admission(lanes)
        self._queue: FairQueue[_Waiting] = FairQueue()
        self._queued_bytes = 0
        self._deleted: OrderedDict[str, None] = OrderedDict()
        self._ledger: Ledger[int] = Ledger()
        self._generation = 0
        self._read_to: dict[TopicPartition, int] = {}
        self._done: dict[TopicPartition, int] = {}  # next offsets to commit
        self._committed_at = 0.0
        self._changed = asyncio.Event()
        self.ready = asyncio.Event()
        health.say(SCHEDULER, Condition.UNREADY, "joining")

    @property
    def waiting(self) -> int:
        """Number of events read and queued."""
        return len(self._queue)

    @property
    def interactive(self) -> int:
        """Number of interactive images in the pipeline."""
        return self._admission.interactive

    async def run(self) -> None:
        """Schedule until cancelled. Raises DependencyUnavailable without Kafka; the supervisor restarts it."""
        watcher = self._watcher()
        bulk = self._bulk_consumer()
        tasks: list[asyncio.Task[None]] = []
        try:
            await self._start(watcher, bulk)
            loops = (self._watch(watcher), self._read(bulk), self._forward(bulk))
            tasks = [asyncio.create_task(loop) for loop in loops]
            await asyncio.gather(*tasks)
        except (KafkaError, TimeoutError) as error:
            raise DependencyUnavailable(f"the scheduler lost Kafka: {error!r}") from error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._stop(watcher, bulk)

    def _watcher(self) -> Any:
        """Return a consumer without a group: every scheduler sees all uploads, facts and outcomes from now on."""
        watched = (UPLOADED, FETCH_REQUESTED, FACTS, OUTCOMES)
        return AIOKafkaConsumer(
            *(self._settings.topic(topic.name) for topic in watched),
            **aiokafka_arguments(self._settings),
            enable_auto_commit=False,
            auto_offset_reset="latest",
        )

    def _bulk_consumer(self) -> Any:
        return AIOKafkaConsumer(
            **aiokafka_arguments(self._settings),
            group_id=self._settings.group(SCHEDULER),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_poll_interval_ms=300_000,
        )

    async def _start(self, watcher: Any, bulk: Any) -> None:
        await self._in_time(watcher.start())
        for place in watcher.assignment():
            await self._in_time(watcher.position(place))  # positions fixed: no later outcome is missed
        bulk.subscribe([self._settings.topic(BULK.name)], listener=_Assignment(self, bulk))
        await self._in_time(bulk.start())
        self._health.say(SCHEDULER, Condition.OK, "scheduling")
        self.ready.set()
        log.info("scheduler started")

    async def _stop(self, watcher: Any, bulk: Any) -> None:
        for ending in (self._commit(bulk), bulk.stop(), watcher.stop()):
            try:
                await self._in_time(ending)
            except (KafkaError, TimeoutError) as error:
                log.warning("scheduler did not stop cleanly; uncommitted events are forwarded again", error=repr(error))

    async def _in_time(self, call: Awaitable[T]) -> T:
        """Await a call that the client would retry without limit. Raises TimeoutError."""
        return await bounded(call, self._settings.request_timeout_s)

    # Admission

    async def _watch(self, watcher: Any) -> None:
        while True:
            for place, messages in (await watcher.getmany(timeout_ms=500, max_records=2000)).items():
                topic = self._settings.logical(place.topic)
                for message in messages:
                    self._observe(topic, _record(message))
            self._changed.set()

    def _observe(self, topic: str, record: Record) -> None:
        image_id = record.header("ce_subject")
        if not image_id:
            return
        if topic == OUTCOMES.name:
            self._admission.outcome(image_id)
            if record.header("ce_type") == ImageDeleted.type:
                self._deleted[image_id] = None
                while len(self._deleted) > REMEMBERED:
                    self._deleted.popitem(last=False)
        elif topic == FACTS.name:
            if record.header("ce_type") == StageRetrying.type:
                return  # the stage has not ended
            self._admission.free(Slot(image_id, (record.header("ce_source") or "").removeprefix(_SOURCE)))
        elif record.header(LANE_TARGET_HEADER) is None:
            self._admission.interactive_seen(image_id)

    # Reading

    async def _read(self, bulk: Any) -> None:
        while True:
            self._limit(bulk)
            for place, messages in (await bulk.getmany(timeout_ms=int(POLL_S * 1000), max_records=500)).items():
                refused = [letter for message in messages if (letter := self._take(place, _record(message)))]
                if refused:
                    await self._dead_letter(refused)
            self._changed.set()
            self._measure(bulk)

    def _limit(self, bulk: Any) -> None:
        """Pause reading while the queue is full; polling continues, so the group membership is kept."""
        paused = bulk.paused()
        limit, limit_bytes = self._lanes.read_ahead, self._lanes.read_ahead_bytes
        if len(self._queue) >= limit or self._queued_bytes >= limit_bytes:
            bulk.pause(*(bulk.assignment() - paused))
        elif paused and len(self._queue) <= limit // 2 and self._queued_bytes <= limit_bytes // 2:
            bulk.resume(*paused)

    def _take(self, place: TopicPartition, record: Record) -> tuple[Slice, Record, Malformed] | None:
        """Queue an event; return it with the error if it has no allowed target."""
        where = Slice(place.topic, place.partition, self._generation)
        self._read_to[place] = record.offset + 1
        if not self._ledger.take(where, record.offset, record.offset):
            return None
        try:
            event = read_bulk(record)
        except Malformed as error:
            return where, record, error
        self._queue.put(event.owner, _Waiting(where, record.offset, event))
        self._queued_bytes += event.size
        return None

    async def _dead_letter(self, refused: Sequence[tuple[Slice, Record, Malformed]]) -> None:
        letters: list[Outgoing] = []
        for _, record, error in refused:
            failure = Failure(error.code, error, attempts=1, retriable=False, first_failure=now())
            letters.append(dead_letter(record, SCHEDULER, VERSION, failure))
            metrics.DEAD_LETTERS.labels(SCHEDULER, error.code).inc()
            log.error("bulk event dead-lettered", offset=record.offset, reason=str(error))
        await self._deliverer.deliver(letters)
        for where, record, _ in refused:
            self._finish(where, record.offset)

    # Forwarding

    async def _forward(self, bulk: Any) -> None:
        while True:
            self._changed.clear()
            admitted = self._admit()
            if admitted:
                await self._deliverer.deliver([waiting.event.message for waiting in admitted])
            for waiting in admitted:
                metrics.BULK_FORWARDED.labels(waiting.event.message.topic).inc()
                self._finish(waiting.where, waiting.offset)
            if time.monotonic() - self._committed_at >= COMMIT_S:
                await self._commit(bulk)
            if not admitted:
                await self._wait()

    def _admit(self) -> list[_Waiting]:
        admitted: list[_Waiting] = []
        while len(self._queue) and len(admitted) < MAX_BATCH and self._admission.room():
            waiting = self._queue.take()
            self._queued_bytes -= waiting.event.size
            if waiting.event.slot.image_id not in self._deleted:  # agents drop it without an outcome
                self._admission.admit(waiting.event.slot)
            admitted.append(waiting)
        return admitted

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(POLL_S):  # room also appears with time
                await self._changed.wait()
        except TimeoutError:
            pass

    def _finish(self, where: Slice, offset: int) -> None:
        ready = self._ledger.finish(where, offset)
        if ready:
            self._done[TopicPartition(where.topic, where.partition)] = ready[-1] + 1

    async def _commit(self, bulk: Any) -> None:
        self._committed_at = time.monotonic()
        done, self._done = self._done, {}
        if not done:
            return
        try:
            await self._in_time(bulk.commit(done))
        except (CommitFailedError, IllegalStateError) as error:
            log.info("partitions reassigned before the commit; their events are forwarded again", error=repr(error))

    # Rebalancing

    async def revoke(self, bulk: Any, places: Collection[TopicPartition]) -> None:
        """Commit, then drop the queued events of revoked partitions."""
        await self._commit(bulk)
        revoked = {(place.topic, place.partition) for place in places}
        for topic, partition in revoked:
            self._ledger.revoke(topic, partition)
        self._queue.drop(lambda waiting: (waiting.where.topic, waiting.where.partition) in revoked)
        self._queued_bytes = sum(waiting.event.size for waiting in self._queue)
        self._read_to = {place: at for place, at in self._read_to.items() if place not in places}
        self._done.clear()

    def assign(self) -> None:
        """Start a new generation; entries of older ones are ignored."""
        self._generation += 1

    def _measure(self, bulk: Any) -> None:
        unread = sum(max(0, (bulk.highwater(place) or 0) - at) for place, at in self._read_to.items())
        metrics.BULK_WAITING.set(len(self._queue) + unread)
        metrics.BULK_IN_FLIGHT.set(self._admission.in_flight)
        metrics.BULK_WINDOW.set(self._admission.window)
        metrics.INTERACTIVE_IN_FLIGHT.set(self._admission.interactive)


class _Assignment(ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes rebalances to the scheduler."""

    def __init__(self, scheduler: Scheduler, bulk: Any) -> None:
        self._scheduler = scheduler
        self._bulk = bulk

    async def on_partitions_revoked(self, revoked: Collection[TopicPartition]) -> None:
        """See ConsumerRebalanceListener."""
        await self._scheduler.revoke(self._bulk, revoked)

    async def on_partitions_assigned(self, assigned: Collection[TopicPartition]) -> None:
        """See ConsumerRebalanceListener."""
        self._scheduler.assign()


def _record(message: Any) -> Record:
    return Record(
        message.topic,
        message.partition,
        message.offset,
        message.key,
        message.value,
        tuple(message.headers),
        message.timestamp,
    )
