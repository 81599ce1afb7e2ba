"""The read model in process with 1 000, 10 000 and 100 000 images: writes, reads, memory, and through the gateway.

Baseline up to 10 000 images: the read model of earlier versions (`bench.baselines.local_mode_read_model`); it needs
minutes to be filled with more. With more images the baseline is the goal. Facts go through the indexer's functions, of
16 images at once; each read is timed alone, of the owner who has 60 % of all images, and of one who has 2 %. Memory and
opening are those of a process that does nothing else. DARKROOM_BENCH_IMAGES changes the sizes ("1000,10000").
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
from qdrant_client import models

from agents.indexing.record_facts import conclude, record
from bench.baselines.local_mode_read_model import open_local_mode
from bench.read_model_gateway import requests_ms
from bench.read_model_images import LABELS, LARGE, OWNERS, Image, images_of, recorded, word
from streams.object_store.factory import open_files
from streams.object_store.tombstones import Tombstones
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.qdrant.documents import Derivation
from streams.read_model.qdrant.edge_points import EdgePoints
from streams.read_model.qdrant.model import QdrantReadModel
from streams.read_model.records import VECTOR, Filters
from streams.settings import FilesSettings, QdrantSettings

SIZES = tuple(int(size) for size in os.environ.get("DARKROOM_BENCH_IMAGES", "1000,10000,100000").split(","))
MOST_OF_BASELINE = 10_000
CONCURRENCY = 16  # the indexer's
RECORDED, RECORDED_BY_BASELINE = 2_000, 100  # images whose facts are recorded
CALLS, CALLS_OF_BASELINE = 300, 30  # of each kind
PAGE, FAR_PAGE = 50, 1_000
FILL = 500  # images of one write while a read model is filled
GOAL_FACTS_PER_S, GOAL_READ_MS, GOAL_OPEN_S, GOAL_MB, GOAL_HTTP_MS = 1_000, 10.0, 3.0, 1_500, 25.0

Open = Callable[[Path], AbstractAsyncContextManager[ReadModel]]


@dataclass(frozen=True, slots=True)
class Found:
    """What was measured of one read model at one size."""

    facts_per_s: float
    facts_cpu_us: float  # CPU time of this process per fact, of all its threads
    reads: Mapping[str, Timed]
    open_s: float
    resident_mb: float
    anonymous_mb: float
    disk_mb: float


@dataclass(frozen=True, slots=True)
class Timed:
    """Response times of one kind of read, and the CPU time of this process per call, in ms."""

    p50: float
    p95: float
    cpu: float

    def __str__(self) -> str:
        return f"p50 {self.p50:.2f}, p95 {self.p95:.2f}, CPU {self.cpu:.2f} ms"


def say(line: str) -> None:
    """Write a progress line."""
    print(f"{time.strftime('%H:%M:%S')}  {line}", flush=True)


@asynccontextmanager
async def open_engine(folder: Path) -> AsyncIterator[ReadModel]:
    """Open the read model under test."""
    async with open_read_model(_settings(folder)) as model:
        yield model


@asynccontextmanager
async def open_baseline(folder: Path) -> AsyncIterator[ReadModel]:
    """Open the read model of earlier versions."""
    async with open_local_mode(folder) as model:
        yield cast("ReadModel", model)


def _settings(folder: Path) -> QdrantSettings:
    return QdrantSettings(path=folder, timeout_s=60)


async def fill_engine(folder: Path, images: Sequence[Image]) -> None:
    """Write the records of images in bulk, with all that is derived from them."""
    settings, derivation = _settings(folder), Derivation()
    points = EdgePoints(settings.path / "edge" / settings.collection)
    model = QdrantReadModel(points, derivation, threads=1, longest_s=60)
    await model.open()
    for page in _pages(images):
        new = []
        for image in page:
            point = derivation.point(*recorded(image))
            vectors = point.vector if isinstance(point.vector, dict) else {}
            new.append(point.model_copy(update={"vector": {**vectors, VECTOR: image.vector()}}))
        points.write([models.UpsertOperation(upsert=models.PointsList(points=new))])
        _progress("filling", page[-1].number + 1, len(images))
    await model.close()


async def fill_baseline(folder: Path, images: Sequence[Image]) -> None:
    """Write the records of images in bulk."""
    async with open_local_mode(folder) as model:
        for page in _pages(images):
            await model.fill([(*recorded(image), image.vector()) for image in page])
            _progress("filling the baseline", page[-1].number + 1, len(images))


def _pages(images: Sequence[Image]) -> Iterator[Sequence[Image]]:
    for start in range(0, len(images), FILL):
        yield images[start : start + FILL]


def _progress(what: str, done: int, total: int) -> None:
    if total >= 10 * FILL and done % (total // 5) < FILL:
        say(f"{what}: {done} of {total}")


async def measure(open_: Open, folder: Path, images: Sequence[Image], *, calls: int, stretch: int) -> Found:
    """Measure a read model that has these images."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
        loop = asyncio.get_running_loop()
        resident, anonymous, open_s = await loop.run_in_executor(process, opened, open_, folder, images[-1].image_id)
    say(f"opened in {open_s:.2f} s, {resident:.0f} MB resident")
    async with open_(folder) as model:
        assert sum((await model.count()).values()) == len(images), "not all images were filled in"
        reads = await _reads(model, images, calls)
        facts_per_s, cpu_us = await record_facts(
            model, folder.with_name("objects"), images_of(stretch, first=len(images))
        )
        say(f"{facts_per_s:.0f} facts a second, {cpu_us:.0f} us of CPU each")
    return Found(facts_per_s, cpu_us, reads, open_s, resident, anonymous, _disk_mb(folder))


def opened(open_: Open, folder: Path, image_id: str) -> tuple[float, float, float]:
    """Open a read model and read once of each kind; return the memory in MB, resident and anonymous, and seconds."""

    async def run() -> float:
        began = time.perf_counter()
        async with open_(folder) as model:
            assert await model.get(image_id) is not None
            seconds = time.perf_counter() - began
            for owner in OWNERS:
                await model.page(owner, Filters(), limit=PAGE)
                await model.search_words(owner, word(50), limit=20)
                await model.search_vector(owner, [1.0] + [0.0] * 511, limit=20)
            memory = psutil.Process().memory_info()
            found.append((memory.rss / 1e6, (memory.rss - memory.shared) / 1e6))
        return seconds

    found: list[tuple[float, float]] = []
    seconds = asyncio.run(run())
    return *found[0], seconds


async def record_facts(model: ReadModel, folder: Path, images: Sequence[Image]) -> tuple[float, float]:
    """Record all facts of images as the indexer does, several images at once.

    Return the facts per second, and the CPU time per fact in microseconds.
    """
    waiting = [list(image.facts()) for image in images]
    total = sum(map(len, waiting))
    async with open_files(FilesSettings(directory=folder)) as files:
        tombstones, ended = Tombstones(files), 0

        async def index() -> None:
            nonlocal ended
            while waiting:
                for fact in waiting.pop():
                    known = await record(fact, model, tombstones)
                    assert known is not None
                    outcome = await conclude(fact, known, model)
                    ended += outcome is not None

        began, spent = time.perf_counter(), time.process_time()
        await asyncio.gather(*(index() for _ in range(CONCURRENCY)))
        seconds, spent = time.perf_counter() - began, time.process_time() - spent
    assert ended == len(images), "not every image ended"
    return total / seconds, 1e6 * spent / total


async def _reads(model: ReadModel, images: Sequence[Image], calls: int) -> dict[str, Timed]:
    """Time each kind of read."""
    found: dict[str, Timed] = {}
    for owner, whose in ((LARGE, ""), (OWNERS[1], " (2 % of the images)")):
        for kind, call in _kinds(model, owner, images).items():
            found[kind + whose] = await _timed(call, calls)
            say(f"{kind}{whose}: {found[kind + whose]}")
    return found


def _kinds(model: ReadModel, owner: str, images: Sequence[Image]) -> dict[str, Callable[[int], Awaitable[object]]]:
    """Return the reads of one owner by kind; each takes the number of the call."""
    chance = random.Random(5)
    ids = sorted((image.image_id for image in images if image.owner == owner), reverse=True)
    far = max(1, min(FAR_PAGE, len(ids) // PAGE))
    before = ids[(far - 1) * PAGE - 1] if far > 1 else None
    vectors = [image.vector() for image in chance.sample(list(images), min(CALLS, len(images)))]

    def words(query: str) -> Awaitable[object]:
        return model.search_words(owner, query, limit=20)

    return {
        "get": lambda _: model.get(chance.choice(ids)),
        "page 1": lambda _: model.page(owner, Filters(), limit=PAGE),
        f"page {far}": lambda _: model.page(owner, Filters(), limit=PAGE, beyond=before),
        "rare word": lambda at: words(word(4_000 + at)),
        "common word": lambda at: words(word(at % 5)),
        "label": lambda at: words(LABELS[at % len(LABELS)]),
        "phrase": lambda at: words(f'"{word(at % 5)} {word(at % 7)}"'),
        "nearest 20": lambda at: model.search_vector(owner, vectors[at % len(vectors)], limit=20),
        "count by state": lambda _: model.count(owner),
    }


async def _timed(call: Callable[[int], Awaitable[object]], calls: int) -> Timed:
    taken = []
    spent = time.process_time()
    for at in range(calls):
        began = time.perf_counter()
        await call(at)
        taken.append(1000 * (time.perf_counter() - began))
    cuts = statistics.quantiles(taken, n=20)
    return Timed(cuts[9], cuts[18], 1000 * (time.process_time() - spent) / calls)


def _disk_mb(folder: Path) -> float:
    """Return what a folder occupies: preallocated files are sparse."""
    return sum(512 * path.stat().st_blocks for path in folder.rglob("*") if path.is_file()) / 1e6


async def _size(count: int, scratch: Path) -> list[dict[str, Any]]:
    images = images_of(count)
    say(f"{count} images")
    await fill_engine(scratch / "engine", images)
    say("filled")
    before: Found | None = None
    if count <= MOST_OF_BASELINE:
        await fill_baseline(scratch / "baseline", images)
        before = await measure(
            open_baseline, scratch / "baseline", images, calls=CALLS_OF_BASELINE, stretch=RECORDED_BY_BASELINE
        )
    http = await requests_ms(scratch / "engine", {"a page of 50": _PAGE_PATH, "a word": f"{_SEARCH_PATH}{word(50)}"})
    for kind, (p50, p95) in http.items():
        say(f"through the gateway, {kind}: p50 {p50:.2f} ms, p95 {p95:.2f} ms")
    found = await measure(open_engine, scratch / "engine", images, calls=CALLS, stretch=min(RECORDED, count))
    return _rows(count, found, before, http)


_PAGE_PATH = f"/api/v1/images?page_size={PAGE}"
_SEARCH_PATH = "/api/v1/search?q="


def _rows(
    count: int, found: Found, before: Found | None, http: Mapping[str, tuple[float, float]]
) -> list[dict[str, Any]]:
    def row(what: str, baseline: float | None, goal: float, ours: float, notes: str) -> dict[str, Any]:
        """Return a row of seconds; without a baseline the goal is one."""
        seconds = goal if baseline is None else baseline
        of = "the goal" if baseline is None else "local mode"
        work = f"read model, {count} images: {what}"
        return {
            "work": work, "baseline_s": seconds, "ours_s": ours, "ratio": seconds / max(ours, 1e-9), "target": 1.0,
            "notes": f"{notes}; against {of}",
        }  # fmt: skip

    old = before.reads if before is not None else {}
    rows = [
        row(
            "1 000 facts", 1000 / before.facts_per_s if before else None, 1000 / GOAL_FACTS_PER_S,
            1000 / found.facts_per_s, f"{found.facts_per_s:.0f} facts a second, CPU {found.facts_cpu_us:.0f} us each",
        ),
        row(
            "opened, and one image read", before.open_s if before else None, GOAL_OPEN_S, found.open_s,
            f"{found.open_s:.2f} s",
        ),
    ]  # fmt: skip
    for kind, timed in found.reads.items():
        past = None if kind.startswith("phrase") else old.get(kind)  # local mode searched no phrases
        notes = f"{timed}" + (f"; before {past}" if past else "")
        rows.append(
            row(f"p95 of {kind}", past.p95 / 1000 if past else None, GOAL_READ_MS / 1000, timed.p95 / 1000, notes)
        )
    for kind, (p50, p95) in http.items():
        notes = f"p50 {p50:.2f}, p95 {p95:.2f} ms"
        rows.append(row(f"p95 of {kind} by HTTP", None, GOAL_HTTP_MS / 1000, p95 / 1000, notes))
    memory = f"{found.anonymous_mb:.0f} MB of it not of files; on disk {found.disk_mb:.0f} MB"
    if before is not None:
        memory += f"; local mode {before.resident_mb:.0f} MB, on disk {before.disk_mb:.0f} MB"
    work = f"read model, {count} images: memory of a process"
    rows.append(
        {
            "work": work,
            "baseline_s": None,
            "ours_s": None,
            "ratio": found.resident_mb,
            "target": GOAL_MB,
            "notes": memory,
        }
    )
    return rows


def run(_data_dir: Path) -> list[dict[str, Any]]:
    """Return the rows of every size."""
    rows: list[dict[str, Any]] = []
    for size in SIZES:
        with tempfile.TemporaryDirectory() as scratch:
            rows += asyncio.run(_size(size, Path(scratch)))
    return rows


if __name__ == "__main__":
    sys.exit("run it as `python -m bench read_model`")
