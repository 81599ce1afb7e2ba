"""Latency of a single upload while 5 000 images wait in the bulk lane, against an idle system; and bulk throughput.

The embedded system with every agent. First one upload every 2 s on the interactive lane; then 100 images directly on
`image.uploaded`; then 5 000 images on the bulk lane, produced as another service does: alone, and then with one upload
every 2 s. Every image is unique. The time of an upload is from the first byte sent until its outcome is in the log.
"""

from __future__ import annotations

import asyncio
import hashlib
import tempfile
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

from aiokafka import AIOKafkaConsumer

from bench.pipeline import models_of
from bench.uploads import small
from darkroom.local.system import RunningSystem, SystemPlan, running_system
from gateway.client import AsyncDarkroom
from schemas.events.intake import ImageUploaded
from schemas.values import new_image_id
from streams import topics
from streams.kafka.messages import in_bulk, outgoing
from streams.kafka.producer import EventProducer, open_producer
from streams.object_store.factory import open_files
from streams.object_store.keys import original_key
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings, KafkaSettings

IDLE, BUSY = 30, 60  # uploads
EVERY_S = 2.0
DIRECT = 100
BULK = 5_000
SETTLE_S, ALONE_S = 30.0, 60.0
PATIENCE_S = 300.0


@dataclass(slots=True)
class Outcomes:
    """The time of each image's outcome in the log."""

    ended: dict[str, float] = field(default_factory=dict)  # image id -> monotonic seconds
    arrived: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, consumer: AIOKafkaConsumer) -> None:
        """Record every outcome until cancelled."""
        async for message in consumer:
            image_id = dict(message.headers)["ce_subject"].decode()
            kind = dict(message.headers)["ce_type"].decode()
            if kind != "darkroom.image.completed.v1":
                raise RuntimeError(f"{image_id} ended {kind}")
            self.ended.setdefault(image_id, time.monotonic())
            self.arrived.set()

    async def until(self, image_ids: Sequence[str]) -> None:
        """Wait until all these images have ended."""
        async with asyncio.timeout(PATIENCE_S):
            while not all(image_id in self.ended for image_id in image_ids):
                self.arrived.clear()
                await self.arrived.wait()

    def between(self, began: float, over: float, image_ids: set[str]) -> int:
        """Return how many of these images ended in a time span."""
        return sum(began <= at < over for image_id, at in self.ended.items() if image_id in image_ids)


@dataclass(frozen=True, slots=True)
class Bench:
    """The running system's clients and outcomes."""

    client: AsyncDarkroom
    files: FileStore
    producer: EventProducer
    outcomes: Outcomes

    async def upload_each(self, photos: Sequence[bytes]) -> list[float]:
        """Upload one image every 2 s; return the seconds of each until its outcome was in the log."""

        async def one(photo: bytes) -> float:
            began = time.monotonic()
            submitted = await self.client.submit(photo, filename="single.jpg")
            await self.outcomes.until([submitted.image_id])
            return self.outcomes.ended[submitted.image_id] - began

        began = time.monotonic()
        tasks = []
        for number, photo in enumerate(photos):
            await asyncio.sleep(max(0.0, began + number * EVERY_S - time.monotonic()))
            tasks.append(asyncio.create_task(one(photo)))
        return list(await asyncio.gather(*tasks))

    async def produce(self, photos: Sequence[bytes], *, bulk: bool) -> list[str]:
        """Store images and produce their events as another service does; return the image ids."""
        messages, image_ids = [], []
        for photo in photos:
            digest = hashlib.sha256(photo).hexdigest()
            ref = await self.files.put(original_key("default", digest), photo, content_type="image/jpeg", sha256=digest)
            event = ImageUploaded(image_id=new_image_id(), original=ref)
            message = outgoing(topics.UPLOADED, event, source="bench", traceparent=None)
            messages.append(in_bulk(message) if bulk else message)
            image_ids.append(event.image_id)
        for begin in range(0, len(messages), 500):
            await self.producer.deliver(messages[begin : begin + 500])
        return image_ids


@dataclass(frozen=True, slots=True)
class Found:
    """The measurements: seconds of each upload, and images per second."""

    idle_s: list[float]
    busy_s: list[float]
    direct: float
    alone: float
    beside: float


async def _opened(stack: AsyncExitStack, system: RunningSystem) -> Bench:
    kafka = KafkaSettings(bootstrap=system.environment["DARKROOM_KAFKA__BOOTSTRAP"])
    files = FilesSettings(directory=Path(system.environment["DARKROOM_FILES__DIRECTORY"]))
    consumer = AIOKafkaConsumer(
        kafka.topic(topics.OUTCOMES.name), bootstrap_servers=kafka.bootstrap, auto_offset_reset="earliest"
    )
    await consumer.start()
    stack.push_async_callback(consumer.stop)
    outcomes = Outcomes()
    following = asyncio.create_task(outcomes.follow(consumer))
    stack.callback(following.cancel)
    return Bench(
        await stack.enter_async_context(AsyncDarkroom(system.url, timeout_s=120)),
        await stack.enter_async_context(open_files(files)),
        await stack.enter_async_context(open_producer(kafka, source="bench")),
        outcomes,
    )


async def _direct(bench: Bench, photos: Sequence[bytes]) -> float:
    """Return the images per second produced directly to the pipeline."""
    began = time.monotonic()
    await bench.outcomes.until(await bench.produce(photos, bulk=False))
    return len(photos) / (time.monotonic() - began)


async def _measure(data_dir: Path) -> Found:
    photos = iter(small(data_dir, 3 + IDLE + DIRECT + BULK + BUSY))

    def some(count: int) -> list[bytes]:
        return [next(photos) for _ in range(count)]

    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        plan = SystemPlan(scratch / "system", port=0, environment=models_of(scratch, data_dir))
        async with running_system(plan, lambda _line: None) as system, AsyncExitStack() as stack:
            await system.until_ready(lambda _line: None)
            bench = await _opened(stack, system)
            await bench.upload_each(some(3))
            idle_s = await bench.upload_each(some(IDLE))
            direct = await _direct(bench, some(DIRECT))
            waiting = set(await bench.produce(some(BULK), bulk=True))
            await asyncio.sleep(SETTLE_S)
            began = time.monotonic()
            await asyncio.sleep(ALONE_S)
            over = time.monotonic()
            alone = bench.outcomes.between(began, over, waiting) / (over - began)
            began = time.monotonic()
            busy_s = await bench.upload_each(some(BUSY))
            over = time.monotonic()
            beside = bench.outcomes.between(began, over, waiting) / (over - began)
            return Found(idle_s, busy_s, direct, alone, beside)


def _quantile(seconds: Sequence[float], share: float) -> float:
    return sorted(seconds)[min(int(len(seconds) * share), len(seconds) - 1)]


def run(data_dir: Path) -> list[dict[str, object]]:
    """Return a row for upload latency and one for bulk throughput."""
    found = asyncio.run(_measure(data_dir))
    halves = [_quantile(seconds, 0.5) for seconds in (found.idle_s, found.busy_s)]
    ends = [_quantile(seconds, 0.95) for seconds in (found.idle_s, found.busy_s)]
    return [
        {
            "work": f"p95 of an upload, to completed: idle, and with {BULK} images waiting in the bulk lane",
            "baseline_s": ends[0],
            "ours_s": ends[1],
            "ratio": ends[0] / ends[1],
            "target": 0.5,
            "notes": f"{ends[1] / ends[0]:.2f} times as long; p50 {halves[0]:.2f} s and {halves[1]:.2f} s",
        },
        {
            "work": "100 small images: directly into the pipeline, and through the bulk lane",
            "baseline_s": 100 / found.direct,
            "ours_s": 100 / found.alone,
            "ratio": found.alone / found.direct,
            "target": 0.8,
            "notes": f"{found.alone:.2f} images/s in bulk; {found.beside:.2f} with one upload every {EVERY_S:g} s",
        },
    ]
