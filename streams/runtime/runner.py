"""The runner: decode → reuse or compute (deadline, retries) → deliver → ack. Uses neither Faust nor a Kafka client.

Guarantees: `finished` is called for a record only after its events, its delay or its dead letter are in the log;
records of one image are processed in order; at most `in_flight` records are in flight; an exception of a stage never
stops the loop. If an output cannot be delivered, `fatal` is called instead, and the process must exit so that Kafka
redelivers.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import structlog

from schemas.events.envelope import Event, NotAnEvent, Outgoing, Record, decode, now, subject_of, target_of
from schemas.values import ErrorCode, StageReport
from streams.concurrency.batcher import Batcher
from streams.concurrency.readers_writer_lock import ReadWriteLock
from streams.errors import (
    DependencyUnavailable,
    EngineFailed,
    Malformed,
    ObjectGone,
    Postponed,
    Retryable,
    Undeliverable,
    WorkerCrashed,
)
from streams.kafka.messages import outgoing
from streams.retries.dead_letters import Failure, dead_letter, origin_of
from streams.retries.retry_policy import (
    ATTEMPT_HEADER,
    DELAYS_HEADER,
    DUE_HEADER,
    FIRST_FAILURE_HEADER,
    ORIGIN_HEADERS,
    POSTPONED_HEADER,
    Delay,
    number_header,
)
from streams.runtime import outcome_facts
from streams.runtime.backpressure import DependencyGate
from streams.runtime.execution import Answer, Services, Worked, perform, unless_deleted
from streams.runtime.object_references import refused_reference
from streams.runtime.poison_events import PoisonEventTracker, Verdict
from streams.runtime.profile_parameters import refused_parameters
from streams.runtime.self_check import SelfCheck
from streams.stage import Emit, Reject, Skip, Stage, StageSettings
from streams.telemetry import metrics
from streams.telemetry.tracing import Origin, child_of, origin_scope, trace_id
from streams.topics import MAX_MESSAGE_BYTES, delay_topic

log = structlog.get_logger(__name__)

_MOST_POSTPONED = 999_999  # the largest number of the header

Finished = Callable[[], Awaitable[None]]
Settle = Callable[[Record], Awaitable[tuple[str, list[Outgoing]]]]


def _lane(record: Record, subject: str | None) -> bytes:
    """Return the ordering key of a record: its image (on some topics not the key), else its key, else its offset."""
    if subject:
        return subject.encode()
    return record.key if record.key is not None else f"{record.topic}/{record.partition}/{record.offset}".encode()


def _check_size(message: Outgoing) -> None:
    size = len(message.value or b"") + sum(len(name) + len(value) for name, value in message.headers)
    if size > MAX_MESSAGE_BYTES and not message.topic.endswith((".dead", ".retry")) and ".delay." not in message.topic:
        raise ValueError(f"an event of {size} bytes for {message.topic} breaks the claim check ({MAX_MESSAGE_BYTES})")


@dataclass(slots=True)
class _Job:
    record: Record
    finished: Finished
    subject: str | None
    taken_at: float = field(default_factory=time.monotonic)
    begun_at: float | None = None  # None while earlier records of its image are processed


class Runner:
    """Runs one stage over records from any source: Faust, the in-memory log, a test."""

    def __init__(self, stage: Stage[Any, Any, Any], tools: Any, settings: StageSettings, services: Services) -> None:
        self._stage = stage
        self._tools = tools
        self._settings = settings
        self._services = services
        self._accepts = stage.accepts()
        self._buckets = services.buckets
        self._room = asyncio.Semaphore(settings.in_flight)
        self._lanes: dict[bytes, deque[_Job]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._open: dict[int, _Job] = {}
        self._draining = False
        self._gate = DependencyGate(services.breakers)
        self._check = SelfCheck(stage, tools, settings, services.limit, services.halt)
        self._lock = ReadWriteLock()
        self._batcher: Batcher[Event, Answer] | None = None
        if stage.process_batch is not None:
            batch = stage.process_batch
            self._batcher = Batcher(
                lambda events: batch(events, tools),
                size=settings.batch_size,
                wait_s=settings.batch_wait_s,
                parallel=max(1, settings.in_flight // (2 * settings.batch_size)),
                observe=metrics.BATCH_SIZE.labels(stage.name).observe,
            )

    async def submit(self, record: Record, finished: Finished) -> bool:
        """Queue a record, waiting until fewer than `in_flight` are in flight (back-pressure). False while draining."""
        await self._room.acquire()
        if self._draining:
            self._room.release()
            return False
        job = _Job(record, finished, subject_of(record))
        self._open[id(job)] = job
        metrics.series(metrics.IN_FLIGHT, self._stage.name).set(len(self._open))
        lane_key = _lane(record, job.subject)
        lane = self._lanes.get(lane_key)
        if lane is not None:
            lane.append(job)
            return True
        self._lanes[lane_key] = deque([job])
        task = asyncio.create_task(self._work_lane(lane_key), name=f"{self._stage.name}-lane")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return True

    def in_flight(self) -> int:
        """Return the number of records submitted and not finished."""
        return len(self._open)

    def oldest_s(self) -> float:
        """Return how many seconds the longest-running record has been processed."""
        begun = [job.begun_at for job in self._open.values() if job.begun_at is not None]
        return time.monotonic() - min(begun) if begun else 0.0

    async def drain(self, seconds: float) -> bool:
        """Refuse further records and wait for those in flight, except those at the gate; False on timeout."""
        self._draining = True
        self._gate.close()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        return not self._tasks

    async def close(self) -> None:
        """Cancel what is still running; a cancelled record is never reported finished."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._batcher is not None:
            await self._batcher.close()

    async def _work_lane(self, lane_key: bytes) -> None:
        lane = self._lanes[lane_key]
        structlog.contextvars.bind_contextvars(stage=self._stage.name)
        try:
            while lane and await self._gate.wait():
                await self._work(lane[0])
                lane.popleft()
            for left in lane:  # unprocessed and unacked: Kafka redelivers
                self._forget(left)
        except Exception as error:
            # Acking later records of this lane would lose this one.
            log.critical("runner failed", stage=self._stage.name, error=repr(error), exc_info=error)
            self._services.fatal(error)
        finally:
            self._lanes.pop(lane_key, None)

    async def _work(self, job: _Job) -> None:
        record = job.record
        job.begun_at = time.monotonic()
        trace = trace_id(record.header("traceparent"))
        # The lane's task has its own context: the next event's values replace these.
        structlog.contextvars.bind_contextvars(image=(job.subject or "")[:64], trace=trace)
        with origin_scope(Origin(trace, *origin_of(record), record.timestamp_ms)):
            kind = await self._process(job)
        metrics.series(metrics.EVENTS, self._stage.name, kind).inc()
        metrics.series(metrics.STAGE_SECONDS, self._stage.name).observe(time.monotonic() - job.taken_at)
        self._forget(job)
        await self._check.note(record, died=kind == "dead")

    def _forget(self, job: _Job) -> None:
        self._open.pop(id(job), None)
        metrics.series(metrics.IN_FLIGHT, self._stage.name).set(len(self._open))
        self._room.release()

    async def _process(self, job: _Job) -> str:
        """Process a record concurrently with others, or alone if it was in flight when a previous worker crashed."""
        markers = self._services.markers
        if markers is None:
            return await self._finish(job, self._settle_safely)
        # No suspect is ever added after the start: without any, no record needs the exclusive lock.
        if not markers.suspects():
            return await self._marked(job, markers, self._settle_safely)
        verdict = markers.verdict(job.record)
        async with self._lock.shared() if verdict is Verdict.NORMAL else self._lock.exclusive():
            return await self._marked(
                job, markers, self._reject_poison if verdict is Verdict.POISON else self._settle_safely
            )

    async def _marked(self, job: _Job, markers: PoisonEventTracker, settle: Settle) -> str:
        """Finish a record with its crash marker set."""
        markers.begin(job.record)
        kind = await self._finish(job, settle)
        markers.end(job.record)
        return kind

    async def _finish(self, job: _Job, settle: Settle) -> str:
        """Settle a record, deliver its messages, ack it; return the outcome label."""
        await self._services.hook("before-work", job.record)
        kind, messages = await settle(job.record)
        if messages:
            await self._deliver(messages)
        await self._services.hook("after-produce", job.record)
        await job.finished()
        return kind

    async def _reject_poison(self, record: Record) -> tuple[str, list[Outgoing]]:
        """Dead-letter an event that crashed its worker twice, without processing it."""
        crash = WorkerCrashed()
        failure = Failure(ErrorCode.WORKER_CRASHED, crash, 1, retriable=False, first_failure=now())
        try:
            event = decode(record, self._accepts)
        except NotAnEvent:
            return self._dead_letter(record, None, failure)
        report = self._unworked()
        answer = await unless_deleted(self._stage, self._services, event, crash)
        if answer is not crash:
            return self._conclude(record, event, Worked(answer, report))
        return self._dead_letter(record, event, failure, Worked(crash, report))

    async def _deliver(self, messages: list[Outgoing]) -> None:
        try:
            await self._services.deliverer.deliver(messages)
        except DependencyUnavailable as error:
            raise Undeliverable(str(error)) from error

    async def _settle_safely(self, record: Record) -> tuple[str, list[Outgoing]]:
        try:
            kind, messages = await self._settle(record)
            for message in messages:
                _check_size(message)
        except Exception as error:
            # A bug outside the stage's function: dead letter, as for one inside it.
            return self._dead_letter(
                record, None, Failure(ErrorCode.INTERNAL_ERROR, error, 1, retriable=False, first_failure=now())
            )
        return kind, messages

    async def _settle(self, record: Record) -> tuple[str, list[Outgoing]]:
        """Return a record's outcome label, and the messages that must be in the log before it is acked."""
        if record.timestamp_ms:
            age = max(0.0, time.time() - record.timestamp_ms / 1000)
            metrics.series(metrics.EVENT_AGE_SECONDS, self._stage.name).observe(age)
        try:
            event = decode(record, self._accepts)
        except NotAnEvent as error:
            # A topic carries only its declared types: another type is a producer's mistake, so it is not ignored.
            code = ErrorCode.UNKNOWN_EVENT if error.unknown else ErrorCode.MALFORMED_EVENT
            return await self._reject_malformed(record, code, error)
        if not self._concerns(event):
            return "ignored", []
        if refusal := refused_reference(event, self._buckets) or refused_parameters(self._stage, event):
            answer = await unless_deleted(self._stage, self._services, event, refusal)
            return self._conclude(record, event, Worked(answer, self._unworked()))
        worked = await perform(self._stage, self._tools, self._settings, self._services, self._batcher, record, event)
        kind, messages = self._conclude(record, event, worked)
        if isinstance(worked.answer, Retryable | Postponed) and kind in ("retried", "postponed"):
            messages += await self._retrying(event, record, worked.answer, worked.report, messages[0])
        return kind, messages

    async def _reject_malformed(self, record: Record, code: ErrorCode, error: NotAnEvent) -> tuple[str, list[Outgoing]]:
        """Dead-letter a record that is no event; its image, if the body names one, ends failed instead of never."""
        failure = Failure(code, error, 1, retriable=False, first_failure=now())
        target = target_of(record) if code is ErrorCode.MALFORMED_EVENT else None
        if target is None or await unless_deleted(self._stage, self._services, target, error) is not error:
            return self._dead_letter(record, None, failure)
        return self._dead_letter(record, target, failure, Worked(error, self._unworked()))

    def _unworked(self) -> StageReport:
        """Return the report of an event that was refused without processing it."""
        return StageReport(stage=self._stage.name, version=self._stage.version, attempts=1, duration_ms=0)

    def _concerns(self, event: Event) -> bool:
        name = self._stage.name
        return not self._stage.in_profile or event.profile.requires(name)

    def _conclude(self, record: Record, event: Event, worked: Worked) -> tuple[str, list[Outgoing]]:
        stage = self._stage.name
        match worked.answer:
            case Emit():
                return "emitted", self._messages(record, worked.answer)
            case Skip(reported=True):
                return "skipped", self._messages(record, outcome_facts.skipped(event, worked.answer, worked.report))
            case Skip():
                return "skipped", []
            case Reject():
                metrics.REJECTIONS.labels(stage, worked.answer.code.value).inc()
                log.info("image rejected", code=worked.answer.code.value, reason=worked.answer.message)
                return "rejected", self._messages(record, outcome_facts.refused(event, worked.answer, worked.report))
            case Exception() as error:
                return self._give_up(record, event, worked, error)

    def _give_up(self, record: Record, event: Event, worked: Worked, error: Exception) -> tuple[str, list[Outgoing]]:
        match error:
            case ObjectGone():
                log.warning("object missing: its image was deleted, or it was never stored", error=str(error))
                return "gone", self._failed(record, event, ErrorCode.GONE, worked)
            case Postponed():
                return "postponed", [self._postponed(record, error)]
            case Retryable():
                delay = self._services.retry.next_delay(number_header(record, DELAYS_HEADER), error.after_s)
                if delay is not None:
                    return "retried", [self._delayed(record, delay, worked)]
                code = error.code
            case Malformed():
                code = error.code
            case EngineFailed():
                code = ErrorCode.ENGINE_FAILED
            case _:
                code = ErrorCode.INTERNAL_ERROR
        first = record.header(FIRST_FAILURE_HEADER) or now()
        failure = Failure(code, error, worked.report.attempts, isinstance(error, Retryable), first)
        return self._dead_letter(record, event, failure, worked)

    def _messages(self, record: Record, emit: Emit) -> list[Outgoing]:
        traceparent = child_of(record.header("traceparent"))
        source = f"darkroom/{self._stage.name}"
        return [outgoing(topic, event, source=source, traceparent=traceparent) for topic, event in emit.events]

    def _failed(self, record: Record, event: Event, code: ErrorCode, worked: Worked) -> list[Outgoing]:
        # A stage that consumes facts must not emit its own failures as facts: it would consume them endlessly.
        if not self._stage.reports_failures:
            return []
        return self._messages(record, outcome_facts.failed(event, code, worked.report))

    async def _retrying(
        self, event: Event, record: Record, error: Retryable | Postponed, report: StageReport, delayed: Outgoing
    ) -> list[Outgoing]:
        """Return the event that the image is tried again; none if the image is deleted, or may be."""
        if not self._stage.reports_failures:
            return []
        known = Skip(ErrorCode.SUPERSEDED)
        if await unless_deleted(self._stage, self._services, event, known) is not known:
            return []
        headers = dict(delayed.headers)
        due_s, postponed = int(headers[DUE_HEADER]) / 1000, int(headers.get(POSTPONED_HEADER, b"0"))
        due = datetime.fromtimestamp(due_s, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        return self._messages(record, outcome_facts.retrying(event, error.code, report, due, postponed))

    def _delayed(self, record: Record, delay: Delay, worked: Worked) -> Outgoing:
        metrics.RETRIES.labels(self._stage.name, delay.tier).inc()
        log.warning("event moved to a delay topic", delay=delay.tier, error=repr(worked.answer)[:500])
        return self._in_delay_topic(
            record,
            delay,
            {
                ATTEMPT_HEADER: str(worked.report.attempts),
                DELAYS_HEADER: str(list(self._services.retry.settings.tiers).index(delay.tier) + 1),
                FIRST_FAILURE_HEADER: record.header(FIRST_FAILURE_HEADER) or now(),
            },
        )

    def _postponed(self, record: Record, error: Postponed) -> Outgoing:
        """Return the event for the delay topic that fits its wait, with its attempts and delays as they were."""
        delay = self._services.retry.waiting_tier(error.after_s)
        metrics.RETRIES.labels(self._stage.name, "postponed").inc()
        log.info("event waits in a delay topic", delay=delay.tier, reason=str(error)[:300])
        names = (ATTEMPT_HEADER, DELAYS_HEADER, FIRST_FAILURE_HEADER)
        kept = {name: value for name in names if (value := record.header(name)) is not None}
        times = min(number_header(record, POSTPONED_HEADER) + 1, _MOST_POSTPONED)
        return self._in_delay_topic(record, delay, {**kept, POSTPONED_HEADER: str(times)})

    def _in_delay_topic(self, record: Record, delay: Delay, added: dict[str, str]) -> Outgoing:
        """Return the event as it arrived for a delay topic, with these headers, its due time and its origin."""
        kept = tuple((n, v) for n, v in record.headers if not n.startswith("retry."))
        added |= {
            DUE_HEADER: str(int((time.time() + delay.seconds) * 1000)),
            **dict(zip(ORIGIN_HEADERS, origin_of(record), strict=True)),
        }
        headers = (*kept, *((name, value.encode()) for name, value in added.items()))
        return Outgoing(delay_topic(self._stage.name, delay.tier), record.key, record.value, headers)

    def _dead_letter(
        self, record: Record, event: Event | None, failure: Failure, worked: Worked | None = None
    ) -> tuple[str, list[Outgoing]]:
        stage = self._stage.name
        metrics.DEAD_LETTERS.labels(stage, failure.code.value).inc()
        log.error(
            "event dead-lettered",
            code=failure.code.value,
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            exc_info=failure.error,
        )
        messages = [dead_letter(record, stage, self._stage.version, failure)]
        if event is not None and worked is not None:
            messages += self._failed(record, event, failure.code, worked)
        return "dead", messages
