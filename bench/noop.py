"""The cost of the guarantees: a no-op stage with all guarantees against plain aiokafka in the same run.

Baseline: one consumer, `send_and_wait` for each event with an idempotent producer, offsets committed once a second.
Both are separate processes on the same Kafka, in alternating rounds; the rate comes from the outputs' timestamps.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from infra.local.kafka import LocalKafka
from schemas.events.intake import ImageUploaded
from schemas.values import ObjectRef, StageReport, new_image_id
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

EVENTS = 6_000
ROUNDS = 3
BODY = 1024  # bytes of an event, approximately
SHA = "0" * 64


@asynccontextmanager
async def _nothing(_settings: StageSettings, _resources: Resources) -> AsyncIterator[None]:
    yield None


async def _noop(event: ImageUploaded, _tools: None) -> Outcome:
    from schemas.values import ErrorCode  # noqa: PLC0415

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
            await producer.send_and_wait(settings.topic("image.facts"), message.value, key=message.key)
    finally:
        await consumer.stop()
        await producer.stop()


async def _rate(kafka: LocalKafka, role: str, folder: Path) -> float:
    """Return events per second of one fresh run."""
    settings = KafkaSettings(bootstrap=kafka.bootstrap, prefix=f"b{uuid.uuid4().hex[:8]}.")
    await KafkaAdmin(settings).create_topics([topics.UPLOADED, topics.FACTS, *topics.agent_topics("sanitizer")])
    original = ObjectRef(bucket="darkroom", key=original_key("default", SHA), sha256=SHA, size=1)
    async with open_producer(settings, source="bench") as producer:
        for begin in range(0, EVENTS, 1000):
            events = [
                ImageUploaded(image_id=new_image_id(), original=original, context={"filler": "x" * (BODY - 450)})
                for _ in range(begin, min(begin + 1000, EVENTS))
            ]
            await producer.deliver(
                [outgoing(topics.UPLOADED, event, source="bench", traceparent=None) for event in events]
            )
    env = {
        **os.environ,
        "DARKROOM_KAFKA__BOOTSTRAP": settings.bootstrap,
        "DARKROOM_KAFKA__PREFIX": settings.prefix,
        "DARKROOM_FILES__DIRECTORY": str(folder),
        "DARKROOM_TELEMETRY__LOG_LEVEL": "WARNING",
    }
    worker = await asyncio.create_subprocess_exec(sys.executable, "-m", "bench.noop", role, env=env)
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            await asyncio.sleep(1)
            found = await asyncio.to_thread(read_topic, settings, "image.facts")
            if len(found) >= EVENTS:
                stamps = [record.timestamp_ms for record in found]
                return (EVENTS - 1) / ((max(stamps) - min(stamps)) / 1000)
        raise TimeoutError(f"{role} did not finish {EVENTS} events")
    finally:
        worker.send_signal(signal.SIGTERM)
        await worker.wait()


async def _measure() -> tuple[list[float], list[float]]:
    plain: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        async with LocalKafka(Path(scratch) / "kafka", port=0) as kafka:
            for _ in range(ROUNDS):
                plain.append(await _rate(kafka, "baseline", Path(scratch)))
                ours.append(await _rate(kafka, "ours", Path(scratch)))
    return plain, ours


def run(_data_dir: Path) -> list[dict[str, object]]:
    """Return one row: the median of the rounds."""
    plain, ours = asyncio.run(_measure())
    middle = sorted(o / p for o, p in zip(ours, plain, strict=True))[ROUNDS // 2]
    plain_rate, our_rate = sorted(plain)[ROUNDS // 2], sorted(ours)[ROUNDS // 2]
    return [
        {
            "work": f"no-op stage, {EVENTS} events of 1 KB, every guarantee on",
            "baseline_s": EVENTS / plain_rate,
            "ours_s": EVENTS / our_rate,
            "ratio": middle,
            "target": 0.5,
            "notes": f"plain aiokafka {plain_rate:.0f} events/s, ours {our_rate:.0f} events/s",
        }
    ]


def _worker(role: str) -> int:
    settings = Settings()
    configure_logs(settings.telemetry, process=role)
    if role == "ours":
        return asyncio.run(run_stage(STAGE, SETTINGS, settings))
    asyncio.run(_baseline(settings.kafka))
    return 0


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(_worker(sys.argv[1]))
    for row in run(Path()):
        print(row)
