"""1 000 event streams of one process: the memory they add, and the delivery time to all of them.

The embedded system, its query gateway in `core`; each listener has its own connection to an owner's stream. Facts are
produced to Kafka as the agents do; the time is from the producer's confirmation until the last listener has read the
last fact.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from pathlib import Path

import psutil

from bench.pipeline import models_of
from darkroom.local.system import RunningSystem, SystemPlan, running_system
from schemas.events.facts import StageSkipped
from schemas.values import ErrorCode, StageReport, new_image_id
from streams import topics
from streams.kafka.messages import outgoing
from streams.kafka.producer import EventProducer, open_producer
from streams.process.http_server import raise_file_limit
from streams.settings import KafkaSettings

LISTENERS = 1_000
FACTS = 20
TARGET_MB = 64
PATIENCE_S = 120.0


class Listener:
    """A connection to the owner's event stream."""

    def __init__(self) -> None:
        self.next = 0
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.StreamReader | None = None

    async def open(self, port: int) -> None:
        """Open the stream and wait for the first event id."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", port)
        self._writer.write(b"GET /api/v1/events HTTP/1.1\r\nHost: localhost\r\n\r\n")
        await self._reader.readuntil(b"\nid: ")

    async def receive(self, count: int) -> None:
        """Read `count` events."""
        assert self._reader is not None
        for _ in range(count):
            await self._reader.readuntil(b"event: stage")
            self.next += 1

    def close(self) -> None:
        """Close the connection."""
        if self._writer is not None:
            self._writer.close()


def _fact() -> StageSkipped:
    report = StageReport(stage="resizer", version="1", attempts=1, duration_ms=1)
    return StageSkipped(image_id=new_image_id(), report=report, reason=ErrorCode.GONE, message="of the bench")


def _resident_mb(system: RunningSystem) -> float:
    core = system.supervisor.states()["core"].pid
    assert core is not None
    return psutil.Process(core).memory_info().rss / 1e6


async def _measure(data_dir: Path) -> tuple[float, float, float]:
    """Return the MB that listeners add, the delivery time in s, and the MB that a second round adds."""
    raise_file_limit(LISTENERS)
    with tempfile.TemporaryDirectory() as folder:
        plan = SystemPlan(Path(folder) / "system", port=0, environment=models_of(Path(folder), data_dir))
        async with running_system(plan, lambda _line: None) as system:
            await system.until_ready(lambda _line: None)
            kafka = KafkaSettings(bootstrap=system.environment["DARKROOM_KAFKA__BOOTSTRAP"])
            async with open_producer(kafka, source="bench") as producer, asyncio.timeout(PATIENCE_S):
                await _round(system, producer, 1)
                before = _resident_mb(system)
                delivery_s = await _round(system, producer, LISTENERS)
                added = _resident_mb(system) - before
                await _round(system, producer, LISTENERS)
                return added, delivery_s, _resident_mb(system) - before - added


async def _round(system: RunningSystem, producer: EventProducer, count: int) -> float:
    """Open `count` streams, deliver the facts to all, close them; return the delivery time in s."""
    port = int(system.url.rpartition(":")[2])
    listeners = [Listener() for _ in range(count)]
    for listener in listeners:
        await listener.open(port)
    facts = [outgoing(topics.FACTS, _fact(), source="bench", traceparent=None) for _ in range(FACTS)]
    await producer.deliver(facts)
    begun = time.monotonic()
    await asyncio.gather(*(listener.receive(FACTS) for listener in listeners))
    delivery_s = time.monotonic() - begun
    for listener in listeners:
        listener.close()
    await asyncio.sleep(2)  # for the gateway to notice
    return delivery_s


def run(data_dir: Path) -> list[dict[str, object]]:
    """Return one row."""
    added, delivery_s, more = asyncio.run(_measure(data_dir))
    each = f"{added * 1000 / LISTENERS:.0f} kB each"
    notes = f"{each}; {FACTS} facts delivered to all in {delivery_s:.1f} s; a second round adds {more:.0f} MB"
    return [
        {
            "work": f"memory that {LISTENERS} listeners add to one process",
            "baseline_s": None,
            "ours_s": None,
            "ratio": added,
            "target": TARGET_MB,
            "notes": notes,
        }
    ]
