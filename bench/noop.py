"""The cost of the guarantees: a no-op stage with all guarantees against plain aiokafka in the same run.

Baseline: one consumer, `send_and_wait` for each event with an idempotent producer, offsets committed once a second.
Both are separate processes on the same Kafka, in alternating rounds; the rate comes from the outputs' timestamps. The
CPU time per event is the worker's own, of all its threads, from its first event to a second after its last: other
processes of the machine change it far less than the rate. DARKROOM_BENCH_EVENTS changes the number of events.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from infra.local.kafka import LocalKafka
from schemas.events.intake import ImageUploaded
from schemas.values import ErrorCode, ObjectRef, StageReport, new_image_id
from streams import topics
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import read_topic
from streams.kafka.messages import outgoing
from streams.kafka.producer import open_producer
from streams.object_store.keys import original_key
from streams.runtime.outcome_facts import skipped
from streams.runtime.worker_process import run_stage
from streams.settings import KafkaSettings, Settings
from streams.stage import Outcome, Resources, Skip, Stage, StageSettings
from streams.telemetry.logs import configure_logs

EVENTS = int(os.environ.get("DARKROOM_BENCH_EVENTS", "6000"))
ROUNDS = 3
BODY = 1024  # bytes of an event, approximately
SETTLING_S = 1.0  # after the last event began, for its outputs and its commit


@dataclass(frozen=True, slots=True)
class Run:
    """Events per second of a worker, and its CPU time per event in microseconds."""

    rate: float
    cpu_us: float


class Meter:
    """Measures a worker's CPU time from within, and writes it to a file."""

    def __init__(self) -> None:
        self._report: Path | None = None
        self._events = 0
        self._began = 0.0

    def report_to(self, path: Path) -> None:
        """Write the microseconds per event to this file when all events are done."""
        self._report = path

    def count(self) -> None:
        """Count an event that begins."""
        self._events += 1
        if self._events == 1:
            self._began = time.process_time()
        if self._events == EVENTS:
            asyncio.get_running_loop().call_later(SETTLING_S, self._write)

    def _write(self) -> None:
        if self._report is not None:
            spent = time.process_time() - self._began
            self._report.write_text(str(1e6 * spent / EVENTS))


METER = Meter()


@asynccontextmanager
async def _nothing(_settings: StageSettings, _resources: Resources) -> AsyncIterator[None]:
    yield None


async def _noop(event: ImageUploaded, _tools: None) -> Outcome:
    METER.count()
    report = StageReport(stage="sanitizer", version="1", attempts=1, duration_ms=0)
    return skipped(event, Skip(ErrorCode.MODEL_UNAVAILABLE, "x" * (BODY // 2)), report)


STAGE: Stage[Any, Any, Any] = Stage(
    "sanitizer", "1", (topics.UPLOADED,), (topics.FACTS,), StageSettings, _nothing, process=_noop
)
SETTINGS = StageSettings(concurrency=512, buffer=4096, deadline_s=10)


async def _baseline(settings: KafkaSettings) -> None:
    consumer = AIOKafkaConsumer(
        settings.topic("image.uploaded"),
        bootstrap_servers=settings.bootstrap,
        group_id=settings.group("baseline"),
        auto_offset_reset="earliest",
        enable_auto_commit=True,
        auto_commit_interval_ms=1000,
    )
    producer = AIOKafkaProducer(bootstrap_servers=settings.bootstrap, enable_idempotence=True, acks="all")
    await consumer.start()
    await producer.start()
    try:
        async for message in consumer:
            METER.count()
            await producer.send_and_wait(settings.topic("image.facts"), message.value, key=message.key)
    finally:
        await consumer.stop()
        await producer.stop()


def _event(number: int) -> ImageUploaded:
    sha256 = hashlib.sha256(str(number).encode()).hexdigest()
    original = ObjectRef(bucket="darkroom", key=original_key("default", sha256), sha256=sha256, size=1)
    return ImageUploaded(image_id=new_image_id(), original=original, context={"filler": "x" * (BODY - 450)})


async def _fill(settings: KafkaSettings) -> None:
    await KafkaAdmin(settings).create_topics([topics.UPLOADED, topics.FACTS, *topics.agent_topics("sanitizer")])
    async with open_producer(settings, source="bench") as producer:
        for begin in range(0, EVENTS, 1000):
            events = [_event(number) for number in range(begin, min(begin + 1000, EVENTS))]
            await producer.deliver(
                [outgoing(topics.UPLOADED, event, source="bench", traceparent=None) for event in events]
            )


async def measured(kafka: LocalKafka, module: str, role: str, folder: Path) -> Run:
    """Return what `python -m module role report` reaches on fresh topics."""
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=f"b{uuid.uuid4().hex[:8]}.")
    await _fill(settings)
    env = {
        **os.environ,
        "DARKROOM_KAFKA__BOOTSTRAP": settings.bootstrap,
        "DARKROOM_KAFKA__PREFIX": settings.prefix,
        "DARKROOM_FILES__DIRECTORY": str(folder / "objects"),
        "DARKROOM_TELEMETRY__LOG_LEVEL": "WARNING",
    }
    report = folder / f"{settings.prefix}cpu"
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", module, role, str(report), env=env)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            found = await asyncio.to_thread(read_topic, settings, "image.facts")
            if len(found) >= EVENTS and report.is_file():
                stamps = [record.timestamp_ms for record in found]
                return Run((EVENTS - 1) / ((max(stamps) - min(stamps)) / 1000), float(report.read_text()))
        raise TimeoutError(f"{role} did not finish {EVENTS} events")
    finally:
        worker.send_signal(signal.SIGTERM)
        await worker.wait()


async def _measure() -> tuple[list[Run], list[Run]]:
    plain: list[Run] = []
    ours: list[Run] = []
    with tempfile.TemporaryDirectory() as scratch:
        async with LocalKafka(Path(scratch) / "kafka", port=0) as kafka:
            for _ in range(ROUNDS):
                plain.append(await measured(kafka, "bench.noop", "baseline", Path(scratch)))
                ours.append(await measured(kafka, "bench.noop", "ours", Path(scratch)))
    return plain, ours


def _notes(name: str, runs: list[Run]) -> str:
    rate, cpu_us = (sorted(values)[ROUNDS // 2] for values in zip(*((r.rate, r.cpu_us) for r in runs), strict=True))
    return f"{name} {rate:.0f} events/s at {cpu_us:.0f} us of CPU each"


def run(_data_dir: Path) -> list[dict[str, object]]:
    """Return one row: the median of the rounds."""
    plain, ours = asyncio.run(_measure())
    middle = sorted(o.rate / p.rate for o, p in zip(ours, plain, strict=True))[ROUNDS // 2]
    return [
        {
            "work": f"no-op stage, {EVENTS} events of 1 KB, every guarantee on",
            "baseline_s": EVENTS / sorted(p.rate for p in plain)[ROUNDS // 2],
            "ours_s": EVENTS / sorted(o.rate for o in ours)[ROUNDS // 2],
            "ratio": middle,
            "target": 0.7,
            "notes": f"{_notes('plain aiokafka', plain)}, {_notes('ours', ours)}",
        }
    ]


def worker_settings(report: str) -> Settings:
    """Prepare a worker process that is measured; return its settings."""
    METER.report_to(Path(report))
    settings = Settings()
    configure_logs(settings.telemetry, process="bench")
    return settings


def _worker(role: str, report: str) -> int:
    settings = worker_settings(report)
    if role == "ours":
        return asyncio.run(run_stage(STAGE, SETTINGS, settings))
    asyncio.run(_baseline(settings.kafka))
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(_worker(*sys.argv[1:]))
    for row in run(Path()):
        print(row)
