"""Processes one event: reuses a stored result, or computes and stores it under a deadline, with retries in place."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import structlog
from pydantic import JsonValue

from schemas.events.envelope import Event, Record, now, parameters_hash
from schemas.stored.results import StageResult
from schemas.values import ErrorCode, Lineage, ObjectRef, StageReport
from streams.concurrency.batcher import Batcher
from streams.concurrency.circuit_breaker import Breakers
from streams.errors import DISK_FULL, DependencyUnavailable, Malformed, ObjectGone, Retryable
from streams.kafka.producer import Deliverer
from streams.object_store.keys import result_key
from streams.object_store.original_references import add_reference
from streams.object_store.results import ResultStore
from streams.retries.dead_letter_limit import DeadLetterLimit
from streams.retries.retry_policy import ATTEMPT_HEADER, RetryPolicy, number_header
from streams.runtime.poison_events import PoisonEventTracker
from streams.runtime.tombstone_check import DeletionCheck, NoDeletionCheck
from streams.stage import Announcement, Emit, Once, Outcome, Reject, Skip, Stage, StageSettings
from streams.telemetry import metrics
from streams.telemetry.tracing import trace_id

log = structlog.get_logger(__name__)

Answer = StageResult | Emit | Skip | Reject

_DELETED = Skip(ErrorCode.SUPERSEDED, "the image is deleted")

Hook = Callable[[str, Record], Awaitable[None]]


async def _no_hook(_point: str, _record: Record) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Services:
    """Dependencies of a runner. `hook` is called at named points, for fault injection."""

    deliverer: Deliverer
    results: ResultStore
    retry: RetryPolicy
    fatal: Callable[[BaseException], None]
    limit: DeadLetterLimit
    halt: Callable[[str], None]  # stops consuming, with the reason: too many dead letters
    worker: str = ""
    code_version: str = ""
    hook: Hook = _no_hook
    markers: PoisonEventTracker | None = None
    breakers: Breakers | None = None  # events wait while one of them is open
    deletion_check: DeletionCheck = field(default_factory=NoDeletionCheck)
    other_buckets: tuple[str, ...] = ()  # further names of the store's bucket, which events may use

    @property
    def buckets(self) -> tuple[str, ...]:
        """The names by which events may refer to the object store."""
        return (self.results.files.bucket, *self.other_buckets)


@dataclass(frozen=True, slots=True)
class Worked:
    """How processing one event ended: an outcome, or the exception of the last try."""

    answer: Emit | Skip | Reject | Exception
    report: StageReport


@dataclass(slots=True)
class _Tally:
    """Counts and times for the stage report."""

    attempts: int
    started: float
    reused: bool = False
    computed_ms: int = 0


async def perform(
    stage: Stage[Any, Any, Any],
    tools: Any,
    settings: StageSettings,
    services: Services,
    batcher: Batcher[Event, Answer] | None,
    record: Record,
    event: Event,
) -> Worked:
    """Process one event until it has an outcome or its retries in place are used up. Raises only CancelledError."""
    tally = _Tally(attempts=number_header(record, ATTEMPT_HEADER), started=time.monotonic())
    tries = 0
    while True:
        tries += 1
        tally.attempts += 1
        answer = await _one_try(stage, tools, settings, services, batcher, record, event, tally)
        if isinstance(answer, Retryable):
            pause = services.retry.pause_in_place(tries, time.monotonic() - tally.started, answer.after_s)
            if pause is not None:
                metrics.RETRIES.labels(stage.name, "in-place").inc()
                log.info("retrying in place", error=repr(answer)[:300], tries=tries)
                await asyncio.sleep(pause)
                continue
        return Worked(answer, _report(stage, services, tally))


async def _one_try(
    stage: Stage[Any, Any, Any],
    tools: Any,
    settings: StageSettings,
    services: Services,
    batcher: Batcher[Event, Answer] | None,
    record: Record,
    event: Event,
    tally: _Tally,
) -> Outcome | Exception:
    """Try once; check for a deletion of the image before and after."""
    try:
        async with asyncio.timeout(settings.deadline_s):
            if await _is_deleted(stage, services, event):
                return _DELETED
            answer = await _answer(stage, tools, services, batcher, record, event, tally)
    except TimeoutError:
        answer = Retryable(f"deadline of {settings.deadline_s} s exceeded", code=ErrorCode.DEADLINE_EXCEEDED)
    except OSError as error:
        if error.errno in DISK_FULL:
            return DependencyUnavailable(f"the worker's own disk is full: {error}")
        return error
    except Exception as error:  # a DarkroomError selects what follows; any other is a bug of the stage: dead letter
        answer = error
    return await unless_deleted(stage, services, event, answer)


async def unless_deleted(
    stage: Stage[Any, Any, Any], services: Services, event: Event, answer: Outcome | Exception
) -> Outcome | Exception:
    """Return the answer, an unreported skip if the image was deleted meanwhile, or the error of the deletion check."""
    try:
        return _DELETED if await _is_deleted(stage, services, event, answer) else answer
    except Exception as error:  # a retryable answer names the earlier cause, and is retried either way
        return answer if isinstance(answer, Retryable) else error


async def _is_deleted(
    stage: Stage[Any, Any, Any], services: Services, event: Event, answer: Outcome | Exception | None = None
) -> bool:
    if not stage.checks_deletion or not await services.deletion_check.drops(event, answer):
        return False
    metrics.FENCED.labels(stage.name).inc()
    log.info("event dropped: image deleted", worked=answer is not None)
    return True


async def _answer(
    stage: Stage[Any, Any, Any],
    tools: Any,
    services: Services,
    batcher: Batcher[Event, Answer] | None,
    record: Record,
    event: Event,
    tally: _Tally,
) -> Outcome | Exception:
    once = stage.once
    if once is None:
        return _outcome(stage, await _compute(stage, tools, batcher, event, tally))
    return await _once(stage, once, tools, services, batcher, record, event, tally)


async def _once(
    stage: Stage[Any, Any, Any],
    once: Once[Any, Any, Any],
    tools: Any,
    services: Services,
    batcher: Batcher[Event, Answer] | None,
    record: Record,
    event: Event,
    tally: _Tally,
) -> Emit | Skip | Reject:
    source: ObjectRef = once.input(event)
    parameters: Mapping[str, JsonValue] = once.parameters(event, tools)
    key = _key_of(stage, event, source, parameters)
    found = await services.results.find(key, once.result, event)
    if found is not None:
        await _check_input(services, source)
        metrics.RESULTS_REUSED.labels(stage.name).inc()
        tally.reused = True
        await _add_reference(once, services, event, found.value)
        return once.announce(event, found.value, Announcement(_report(stage, services, tally, found.ref), found.ref))
    answer = await _compute(stage, tools, batcher, event, tally)
    if not isinstance(answer, StageResult):
        return answer
    await services.hook("after-object", record)
    # A model that was unavailable before may have been loaded meanwhile: the result is named by what computed it.
    parameters = once.parameters(event, tools)
    key = _key_of(stage, event, source, parameters)
    lineage = Lineage(
        input_sha256=source.sha256,
        stage=stage.name,
        stage_version=stage.version,
        code_version=services.code_version,
        models=answer.models(),
        parameters=dict(parameters),
        parameters_hash=parameters_hash(parameters),
        duration_ms=tally.computed_ms,
        event_id=record.header("ce_id") or event.id,  # a structured event has no headers
        trace_id=trace_id(record.header("traceparent")),
        computed_at=now(),
    )
    await _add_reference(once, services, event, answer)
    ref = await services.results.save(key, answer, lineage)
    return once.announce(event, answer, Announcement(_report(stage, services, tally, ref), ref))


def _key_of(stage: Stage[Any, Any, Any], event: Event, source: ObjectRef, parameters: Mapping[str, JsonValue]) -> str:
    return result_key(event.owner, source.sha256, stage.name, stage.version, parameters_hash(parameters))


async def _check_input(services: Services, source: ObjectRef) -> None:
    """Raise ObjectGone or Malformed unless the input of a reused result is stored: who knows a hash has no result."""
    stored = await services.results.files.stat(source.key)
    if stored is None:
        raise ObjectGone(f"the input {source.key} is missing")
    if stored.sha256 not in (None, source.sha256):
        message = f"the input {source.key} has other bytes than its event says"
        raise Malformed(message, code=ErrorCode.OBJECT_CHANGED)


async def _add_reference(once: Once[Any, Any, Any], services: Services, event: Event, value: StageResult) -> None:
    """Reference the bytes that later stages key results by, so that deleting another image does not remove them."""
    if once.yields is not None:
        await add_reference(services.results.files, event.owner, once.yields(value).sha256, event.image_id)


async def _compute(
    stage: Stage[Any, Any, Any], tools: Any, batcher: Batcher[Event, Answer] | None, event: Event, tally: _Tally
) -> Answer:
    begun = time.monotonic()
    if batcher is not None:
        answer: Answer = await batcher.ask(event)
    else:
        assert stage.process is not None  # noqa: S101 - checked by Stage.__post_init__
        answer = await stage.process(event, tools)
    seconds = time.monotonic() - begun
    tally.computed_ms = int(seconds * 1000)
    metrics.series(metrics.COMPUTE_SECONDS, stage.name).observe(seconds)
    return answer


def _outcome(stage: Stage[Any, Any, Any], answer: Answer) -> Emit | Skip | Reject:
    if isinstance(answer, StageResult):
        raise TypeError(f"stage {stage.name} returned a StageResult, but has no `once` to announce it")
    return answer


def _report(
    stage: Stage[Any, Any, Any], services: Services, tally: _Tally, result: ObjectRef | None = None
) -> StageReport:
    return StageReport(
        stage=stage.name,
        version=stage.version,
        attempts=tally.attempts,
        duration_ms=int((time.monotonic() - tally.started) * 1000),
        reused=tally.reused,
        worker=services.worker,
        result=result,
    )
