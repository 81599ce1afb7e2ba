"""What each guarantee costs: the no-op stage of `bench noop`, with one guarantee at a time switched off.

A guarantee is switched off in the worker of this bench alone, by replacing the function that gives it; no setting does
that. Each variant is a process of its own on fresh topics of the same Kafka. In every round all variants run once; a
row is the median over the rounds of the difference to that round's worker with every guarantee. CPU time and rate are
those of `bench noop`. The first row switches nothing off: its difference is the noise of the others. `reached` is the
CPU time without the guarantee as a share of the time with it: 1.00 costs nothing.

Storing results is measured with a stage that computes one for every event: with `once`, and without.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import structlog
from aiokafka import AIOKafkaProducer

from bench.noop import EVENTS, METER, ROUNDS, SETTINGS, STAGE, Run, measured, worker_settings
from infra.local.kafka import LocalKafka
from schemas.events.envelope import Outgoing
from schemas.events.intake import ImageUploaded
from schemas.stored.results import StageResult
from schemas.values import StageReport
from streams import topics
from streams.kafka import producer
from streams.kafka.offset_ledger import Ledger, Slice
from streams.kafka.producer import EventProducer
from streams.object_store.factory import open_files
from streams.process.watchdog import Watchdog
from streams.runtime import execution, runner, worker_process
from streams.runtime.backpressure import DependencyGate
from streams.runtime.poison_events import PoisonEventTracker
from streams.runtime.self_check import SelfCheck
from streams.runtime.tombstone_check import TombstoneCheck
from streams.runtime.worker_process import run_stage
from streams.stage import Announcement, Emit, Once, Stage, StageSettings, completed
from streams.telemetry import metrics


def _replace(owner: Any, name: str, by: Any) -> None:
    """Replace an attribute. Raises AttributeError for a name that no longer exists: nothing would be switched off."""
    getattr(owner, name)
    setattr(owner, name, by)


async def _ignored(*_arguments: object) -> None:
    return None


async def _noted(*_arguments: object, died: bool) -> None:
    return None


async def _no(*_arguments: object) -> bool:
    return False


async def _yes(*_arguments: object) -> bool:
    return True


@contextlib.contextmanager
def _no_scope(_origin: object) -> Iterator[None]:
    yield


def _crash_markers() -> None:
    _replace(PoisonEventTracker, "begin", lambda _self, _record: None)
    _replace(PoisonEventTracker, "end", lambda _self, _record: None)


def _awaited_delivery() -> None:
    async def deliver(self: EventProducer, messages: Sequence[Outgoing]) -> None:
        connected = await self.connect()
        for message in messages:
            topic = self._settings.topic(message.topic)
            await connected.send(topic, key=message.key, value=message.value, headers=list(message.headers))

    _replace(EventProducer, "deliver", deliver)


def _idempotence() -> None:
    def repeating(**arguments: Any) -> AIOKafkaProducer:
        return AIOKafkaProducer(**arguments | {"enable_idempotence": False})

    _replace(producer, "AIOKafkaProducer", repeating)


def _acks_in_order() -> None:
    handles: dict[tuple[Slice, int], Any] = {}

    def take(_self: Ledger[Any], where: Slice, offset: int, handle: Any) -> bool:
        handles[where, offset] = handle
        return True

    _replace(Ledger, "take", take)
    _replace(Ledger, "finish", lambda _self, where, offset: [handles.pop((where, offset))])


def _deadlines() -> None:
    unlimited = SimpleNamespace(**vars(asyncio) | {"timeout": lambda _seconds: contextlib.nullcontext()})
    _replace(execution, "asyncio", unlimited)
    _replace(producer, "asyncio", unlimited)


def _reference_checks() -> None:
    _replace(runner, "refused_reference", lambda *_arguments: None)
    _replace(runner, "refused_parameters", lambda *_arguments: None)


def _breakers() -> None:
    _replace(DependencyGate, "wait", _yes)
    _replace(worker_process, "open_files", lambda settings, _breakers: open_files(settings))


def _tracing() -> None:
    _replace(runner, "trace_id", lambda _traceparent: None)
    _replace(runner, "child_of", lambda _traceparent: None)
    _replace(runner, "origin_scope", _no_scope)
    _replace(structlog.contextvars, "bind_contextvars", lambda **_fields: {})


def _metrics() -> None:
    ignored = SimpleNamespace(inc=lambda: None, set=lambda _value: None, observe=lambda _value: None)
    _replace(metrics, "series", lambda *_labels: ignored)


def _watchdog() -> None:
    _replace(Watchdog, "__aenter__", _ignored)


GUARANTEES: dict[str, Callable[[], None]] = {
    "crash markers": _crash_markers,
    "deletion checks": lambda: _replace(TombstoneCheck, "drops", _no),
    "awaited delivery": _awaited_delivery,
    "an idempotent producer": _idempotence,
    "acks in order": _acks_in_order,
    "deadlines": _deadlines,
    "the dead-letter limit": lambda: _replace(SelfCheck, "note", _noted),
    "checks of references and parameters": _reference_checks,
    "circuit breakers": _breakers,
    "tracing": _tracing,
    "metrics": _metrics,
    "the watchdog": _watchdog,
}


class _Stored(StageResult):
    number: int = 1


async def _result(_event: ImageUploaded, _tools: None) -> _Stored:
    METER.count()
    return _Stored()


async def _announced(event: ImageUploaded, _tools: None) -> Emit:
    METER.count()
    report = StageReport(stage="sanitizer", version="1", attempts=1, duration_ms=0)
    return completed(event, _Stored(), Announcement(report, event.original))


@contextlib.asynccontextmanager
async def _no_tools(_settings: StageSettings, _resources: object) -> AsyncIterator[None]:
    yield None


_RESULTS: dict[str, Stage[Any, Any, Any]] = {
    "stored": Stage(
        "sanitizer", "1", (topics.UPLOADED,), (topics.FACTS,), StageSettings, _no_tools, process=_result,
        once=Once(_Stored, lambda event: event.original, lambda _event, _tools: {}),
    ),
    "not stored": Stage(
        "sanitizer", "1", (topics.UPLOADED,), (topics.FACTS,), StageSettings, _no_tools, process=_announced
    ),
}  # fmt: skip
_EVERY, _ALL = "every guarantee", "all of these"
_TARGETS = {_ALL: 0.4, "not stored": 0.1}  # what is left of the CPU time; of a single guarantee, see `run`
_ROLES = (_EVERY, "nothing", *GUARANTEES, _ALL, *_RESULTS)


def _everything() -> None:
    for switch_off in GUARANTEES.values():
        switch_off()


async def _measure() -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {role: [] for role in _ROLES}
    with tempfile.TemporaryDirectory() as scratch:
        async with LocalKafka(Path(scratch) / "kafka", port=0) as kafka:
            for number in range(ROUNDS):
                for role in _ROLES:
                    folder = Path(scratch) / f"{number}-{role}"
                    folder.mkdir()
                    found[role].append(await measured(kafka, "bench.guarantees", role, folder))
    return found


def _row(work: str, every: list[Run], without: list[Run], target: float) -> dict[str, object]:
    costs = median(one.cpu_us - other.cpu_us for one, other in zip(every, without, strict=True))
    rates = median(run.rate for run in every), median(run.rate for run in without)
    cpu_us = median(run.cpu_us for run in every), median(run.cpu_us for run in without)
    return {
        "work": work,
        "baseline_s": EVENTS / rates[1],
        "ours_s": EVENTS / rates[0],
        "ratio": median(other.cpu_us / one.cpu_us for one, other in zip(every, without, strict=True)),
        "target": target,
        "notes": f"costs {costs:.0f} us of CPU per event: {cpu_us[0]:.0f} with, {cpu_us[1]:.0f} without; "
        f"{rates[0]:.0f} events/s with, {rates[1]:.0f} without",
    }


def run(_data_dir: Path) -> list[dict[str, object]]:
    """Return a row for each guarantee: the medians of the rounds."""
    found = asyncio.run(_measure())
    rows = [
        _row(f"no-op stage without {role}", found[_EVERY], found[role], _TARGETS.get(role, 0.7))
        for role in ("nothing", *GUARANTEES, _ALL)
    ]
    return [*rows, _row("stage without stored results", found["stored"], found["not stored"], _TARGETS["not stored"])]


def _worker(role: str, report: str) -> int:
    settings = worker_settings(report)
    switches = {**GUARANTEES, _ALL: _everything}
    if role in switches:
        switches[role]()
    return asyncio.run(run_stage(_RESULTS.get(role, STAGE), SETTINGS, settings))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(_worker(*sys.argv[1:]))
    for row in run(Path()):
        print(row)
