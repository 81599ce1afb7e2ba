"""Small stages without tools, for tests of the runtime."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from schemas.events.envelope import Event, Outgoing
from schemas.events.facts import StageSkipped
from schemas.events.intake import ImageUploaded
from schemas.values import DEFAULT_OWNER, ErrorCode, ObjectRef, StageReport, new_image_id
from streams import topics
from streams.concurrency.circuit_breaker import Breakers
from streams.kafka.messages import outgoing
from streams.object_store.protocol import FileStore
from streams.object_store.results import ResultStore
from streams.retries.dead_letter_limit import DeadLetterLimit
from streams.retries.retry_policy import RetryPolicy
from streams.runtime.execution import Hook, Services
from streams.runtime.poison_events import PoisonEventTracker
from streams.runtime.record_intake import Intake
from streams.runtime.runner import Runner
from streams.runtime.tombstone_check import DeletionCheck, NoDeletionCheck
from streams.settings import LimitSettings, RetrySettings
from streams.stage import Emit, Outcome, Resources, Stage, StageSettings
from streams.testing.memory_log import MemoryLog

SHA = "a" * 64


def uploaded(image_id: str | None = None, **changes: Any) -> ImageUploaded:
    """Return an input event of the test stages."""
    owner = changes.get("owner", DEFAULT_OWNER)
    original = ObjectRef(bucket="darkroom", key=f"originals/{owner}/aa/{SHA}", sha256=SHA, size=3)
    return ImageUploaded(image_id=image_id or new_image_id(), original=original, **changes)


def message(event: Event, topic: str = "image.uploaded", **headers: str) -> Outgoing:
    """Return an event as a message, with additional headers."""
    plain = Outgoing(topic, event.key(), event.body(), event.headers(source="test"))
    extra = tuple((name.replace("_", "-"), value.encode()) for name, value in headers.items())
    return Outgoing(plain.topic, plain.key, plain.value, (*plain.headers, *extra))


def emitted(event: Event, note: str = "seen") -> Emit:
    """Return the output of a test stage for an event: one fact."""
    report = StageReport(stage="echo", version="1", attempts=1, duration_ms=0)
    fact = StageSkipped(
        image_id=event.image_id,
        owner=event.owner,
        generation=event.generation,
        report=report,
        reason=ErrorCode.MODEL_UNAVAILABLE,
        message=note,
    )
    return Emit(((topics.FACTS, fact),))


@dataclass
class Seen:
    """Records the calls of a test stage."""

    images: list[str] = field(default_factory=list)
    running: int = 0
    most: int = 0


@asynccontextmanager
async def _nothing(_settings: StageSettings, _resources: Resources) -> AsyncIterator[None]:
    yield None


def echo_stage(
    seen: Seen | None = None, *, seconds: float = 0.0, act: Callable[[Event], Outcome | None] | None = None
) -> Stage[Any, Any, Any]:
    """Return a stage that emits one fact per event, unless `act` raises or returns another outcome; its probe acts."""
    seen = seen or Seen()

    async def process(event: Event, _tools: None) -> Outcome:
        seen.images.append(event.image_id)
        seen.running += 1
        seen.most = max(seen.most, seen.running)
        try:
            await asyncio.sleep(seconds)
            answer = act(event) if act else None
            return answer or emitted(event)
        finally:
            seen.running -= 1

    async def probe(_tools: None) -> None:
        if act is not None:
            act(uploaded())

    return Stage(
        name="sanitizer",
        version="1",
        consumes=(topics.UPLOADED, topics.FETCHED),
        emits=(topics.FACTS,),
        settings=StageSettings,
        open=_nothing,
        process=process,
        probe=probe,
    )


def batch_stage(
    answer: Callable[[Sequence[Event]], Sequence[Any]], sizes: list[int] | None = None
) -> Stage[Any, Any, Any]:
    """Return a batched stage."""

    async def process_batch(events: Sequence[Event], _tools: None) -> Sequence[Any]:
        if sizes is not None:
            sizes.append(len(events))
        return answer(events)

    return Stage(
        name="detector",
        version="1",
        consumes=(topics.UPLOADED,),
        emits=(topics.FACTS,),
        settings=StageSettings,
        open=_nothing,
        process_batch=process_batch,
    )


@dataclass
class Bench:
    """A runner on an in-memory log, with the fatal errors and halts it reported."""

    log: MemoryLog
    intake: Intake
    fatal: list[BaseException]
    halted: list[str]


def bench(
    stage: Stage[Any, Any, Any],
    files: FileStore,
    log: MemoryLog,
    *,
    settings: StageSettings | None = None,
    retry: RetrySettings | None = None,
    hook: Hook | None = None,
    tools: Any = None,
    limit: LimitSettings | None = None,
    markers: PoisonEventTracker | None = None,
    deletion_check: DeletionCheck | None = None,
    breakers: Breakers | None = None,
) -> Bench:
    """Return a runner of a stage on an in-memory log."""
    fatal: list[BaseException] = []
    halted: list[str] = []
    extra: dict[str, Any] = {"hook": hook} if hook else {}
    services = Services(
        deliverer=log,
        results=ResultStore(files),
        retry=RetryPolicy(retry or RetrySettings(backoff_s=0.001), chance=lambda: 1.0),
        fatal=fatal.append,
        limit=DeadLetterLimit(limit or LimitSettings()),
        halt=halted.append,
        markers=markers,
        deletion_check=deletion_check or NoDeletionCheck(),
        breakers=breakers,
        **extra,
    )
    runner = Runner(stage, tools, settings or StageSettings(), services)
    return Bench(log, Intake(runner), fatal, halted)


__all__ = ["SHA", "Bench", "Seen", "batch_stage", "bench", "echo_stage", "emitted", "message", "outgoing", "uploaded"]
