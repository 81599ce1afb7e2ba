"""The gateway under load: 200 concurrent uploads of 100 KB and 1 000 status polls per second, for a minute.

The embedded system with every agent, once without limits and once with 50 uploads per hour. The polls are an open
loop: each is sent when it is due, independent of earlier responses, and is timed from its due time. Each uploader is a
closed loop; after a 429 or 503 it waits for Retry-After, at most a second. Any status but 200, 202, 429 and 503 is an
error. Load, gateway and agents share the machine's cores. Before the load, the idle gateway's throughput is measured
for a job's status and for /health/live, which reads nothing. DARKROOM_BENCH_SECONDS changes the duration.
"""

from __future__ import annotations

import asyncio
import io
import itertools
import os
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from PIL import Image

from bench.pipeline import models_of
from darkroom.local.system import RunningSystem, SystemPlan, running_system

SECONDS = float(os.environ.get("DARKROOM_BENCH_SECONDS", "60"))
UPLOADERS = 200
UPLOAD_BYTES = 100_000
POLLS = 1_000  # per second
MOST_IN_FLIGHT = 5_000  # polls; above that a due poll is counted as not sent
IDLE_S, IDLE_AT_ONCE = 5.0, 16
EXPECTED = frozenset({200, 202, 429, 503})
FLAT_MB = 32.0  # acceptable growth over the last two thirds of the run


@dataclass(slots=True)
class Tally:
    """Counts and response times of one kind of request."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0  # of the 429 and 503 responses
    not_sent: int = 0

    def note(self, answer: aiohttp.ClientResponse | BaseException, seconds: float) -> None:
        """Count a response or a connection error."""
        if isinstance(answer, BaseException):
            self.statuses[type(answer).__name__] += 1
            return
        self.statuses[str(answer.status)] += 1
        if answer.status in (429, 503):
            self.without_retry_after += "Retry-After" not in answer.headers
        else:
            self.seconds.append(seconds)

    @property
    def errors(self) -> int:
        """The number of unexpected responses and connection errors."""
        known = {str(status) for status in EXPECTED}
        return self.without_retry_after + sum(count for name, count in self.statuses.items() if name not in known)

    def summary(self) -> dict[str, Any]:
        """Return counts, and percentiles in ms."""
        cuts = statistics.quantiles(self.seconds, n=100) if len(self.seconds) > 1 else [0.0] * 99
        marks = {f"p{mark}_ms": round(cuts[mark - 1] * 1000, 1) for mark in (50, 95, 99)}
        return {"answers": dict(self.statuses), "errors": self.errors, "not_sent": self.not_sent, **marks}


@dataclass(slots=True)
class Memory:
    """Samples of the resident memory of a process."""

    process: psutil.Process
    samples: list[tuple[float, float]] = field(default_factory=list)  # seconds, MB

    async def watch(self) -> None:
        """Sample once per second until cancelled."""
        began = time.monotonic()
        while True:
            self.samples.append((time.monotonic() - began, self.process.memory_info().rss / 1e6))
            await asyncio.sleep(1)

    @property
    def later_growth_mb(self) -> float:
        """Growth over the last two thirds of the samples, in MB: regression slope times duration."""
        later = self.samples[len(self.samples) // 3 :]
        if len(later) < 3:
            return 0.0
        slope = statistics.linear_regression(*zip(*later, strict=True)).slope
        return slope * (later[-1][0] - later[0][0])


@dataclass(slots=True)
class Load:
    """Load generator for one system."""

    base: str
    session: aiohttp.ClientSession
    photo: bytes
    jobs: list[str] = field(default_factory=list)
    uploads: Tally = field(default_factory=Tally)
    polls: Tally = field(default_factory=Tally)
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    async def upload(self) -> float:
        """Upload one unique file; return the seconds to wait before the next."""
        form = aiohttp.FormData()
        data = self.photo + next(self._numbers).to_bytes(8, "big")  # decoders ignore bytes after the end of the image
        form.add_field("file", data, filename="load.jpg", content_type="image/jpeg")
        began = time.monotonic()
        try:
            async with self.session.post(f"{self.base}/api/v1/images/upload", data=form) as answer:
                body = await answer.json(content_type=None)
                self.uploads.note(answer, time.monotonic() - began)
                if answer.status == 202:
                    self.jobs.append(body["job_id"])
                return min(1.0, float(answer.headers.get("Retry-After", "0"))) if answer.status != 202 else 0.0
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.uploads.note(error, 0.0)
            return 1.0

    async def uploader(self, until: float) -> None:
        """Upload files until a time."""
        wait_s = 0.0
        while time.monotonic() + wait_s < until:
            await asyncio.sleep(wait_s)
            wait_s = await self.upload()

    async def poll(self, path: str, due: float) -> None:
        """Send one poll, timed from its due time."""
        try:
            async with self.session.get(self.base + path) as answer:
                await answer.read()
                self.polls.note(answer, time.monotonic() - due)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self.polls.note(error, 0.0)

    async def poller(self, until: float) -> None:
        """Send polls at their due times, independent of earlier responses."""
        in_flight: set[asyncio.Task[None]] = set()
        began = time.monotonic()
        for number in itertools.count():
            due = began + number / POLLS
            if due >= until:
                break
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            if len(in_flight) >= MOST_IN_FLIGHT:
                self.polls.not_sent += 1
                continue
            job = random.choice(self.jobs)
            task = asyncio.create_task(self.poll(f"/api/v1/images/jobs/{job}", due))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        await asyncio.gather(*in_flight)

    async def idle_throughput(self, path: str) -> float:
        """Return the responses per second of an idle gateway to a few closed-loop clients."""
        until = time.monotonic() + IDLE_S

        async def ask() -> int:
            count = 0
            while time.monotonic() < until:
                async with self.session.get(self.base + path) as answer:
                    await answer.read()
                    answer.raise_for_status()
                count += 1
            return count

        return sum(await asyncio.gather(*(ask() for _ in range(IDLE_AT_ONCE)))) / IDLE_S


def photo_of(data_dir: Path) -> bytes:
    """Return a photo as a JPEG of 100 KB, less the 8 bytes that make each upload unique."""
    with Image.open(data_dir / "images" / "photos" / "cat_720p.jpg") as source:
        photo = source.convert("RGB").resize((800, 600))
    for quality in range(95, 30, -1):
        stream = io.BytesIO()
        photo.save(stream, "JPEG", quality=quality)
        if stream.tell() <= UPLOAD_BYTES - 8:
            break
    return stream.getvalue().ljust(UPLOAD_BYTES - 8, b"\0")


def core_of(system: RunningSystem) -> psutil.Process:
    """Return the gateway process."""
    port = f"{system.url.rsplit(':', 1)[-1]}"
    for child in psutil.Process().children(recursive=True):
        if child.cmdline()[-1:] == ["core"]:
            return child
    raise RuntimeError(f"no process serves port {port}")


@asynccontextmanager
async def _loaded(data_dir: Path, photo: bytes, **more: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        environment: Mapping[str, str] = {**models_of(scratch, data_dir), **more}
        plan = SystemPlan(scratch / "system", port=0, environment=environment)
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=120)
        async with (
            running_system(plan, lambda _line: None) as system,
            aiohttp.ClientSession(connector=connector, timeout=timeout) as session,
        ):
            await system.until_ready(lambda _line: None)
            yield Load(system.url, session, photo), Memory(core_of(system))


async def _run_load(load: Load, memory: Memory) -> dict[str, Any]:
    """Run the whole load; return the measurements."""
    load.uploads, load.polls = Tally(), Tally()
    watching = asyncio.create_task(memory.watch())
    began = time.monotonic()
    until = began + SECONDS
    await asyncio.gather(load.poller(until), *(load.uploader(until) for _ in range(UPLOADERS)))
    took = time.monotonic() - began
    watching.cancel()
    answered = sum(load.polls.statuses.values())
    megabytes = [mb for _, mb in memory.samples]
    return {
        "due_polls_per_s": POLLS,
        "polls_per_s": round(answered / took, 1),
        "uploads_per_s": round(sum(load.uploads.statuses.values()) / took, 1),
        "polls": load.polls.summary(),
        "uploads": load.uploads.summary(),
        "rss_mb": [round(mb) for mb in (megabytes[0], max(megabytes), megabytes[-1])],
        "later_growth_mb": round(memory.later_growth_mb, 1),
        "seconds": round(took, 1),
    }


async def _measure(data_dir: Path) -> list[dict[str, Any]]:
    photo = photo_of(data_dir)
    rows: list[dict[str, Any]] = []
    async with _loaded(data_dir, photo) as (load, memory):
        for _ in range(20):
            await load.upload()
        live = await load.idle_throughput("/health/live")
        status = await load.idle_throughput(f"/api/v1/images/jobs/{load.jobs[0]}")
        rows.append(_idle_row(live, status))
        rows += _rows("no limits", await _run_load(load, memory))
    async with _loaded(data_dir, photo, DARKROOM_LIMITS__UPLOADS="50/hour") as (load, memory):
        await load.upload()
        rows += _rows("50 uploads an hour", await _run_load(load, memory))
    return rows


def _idle_row(live: float, status: float) -> dict[str, Any]:
    return {
        "work": "1 000 status polls, idle, against /health/live",
        "baseline_s": 1000 / live,
        "ours_s": 1000 / status,
        "ratio": status / live,
        "target": 0.3,
        "notes": f"{status:.0f} a second against {live:.0f}, {IDLE_AT_ONCE} at once",
    }


def _rows(limits: str, found: dict[str, Any]) -> list[dict[str, Any]]:
    polls, uploads = found["polls"], found["uploads"]
    times = {
        kind: "/".join(f"{found[kind][f'p{mark}_ms']:.0f}" for mark in (50, 95, 99)) for kind in ("polls", "uploads")
    }
    notes = (
        f"polls {times['polls']} ms, uploads {found['uploads_per_s']:.0f}/s {times['uploads']} ms (p50/95/99); "
        f"{polls['answers']} {uploads['answers']}, {polls['not_sent']} not sent, "
        f"{polls['errors'] + uploads['errors']} errors"
    )
    load = {
        "work": f"{POLLS} polls a second and {UPLOADERS} uploads at once, {limits}",
        "baseline_s": 1.0,
        "ours_s": POLLS / found["polls_per_s"],
        "ratio": found["polls_per_s"] / POLLS,
        "target": 1.0,
        "notes": notes,
        "details": found,
    }
    memory = {
        "work": f"growth of the gateway over the last 2/3, {limits}",
        "baseline_s": None,
        "ours_s": None,
        "ratio": found["later_growth_mb"],
        "target": FLAT_MB,
        "notes": f"RSS at start, peak, at end: {'/'.join(map(str, found['rss_mb']))} MB",
    }
    return [load, memory]


def run(data_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of both runs."""
    return asyncio.run(_measure(data_dir))


if __name__ == "__main__":
    sys.exit("run it as `python -m bench gateway_load`")
