"""The run: calm first, then the storm, then quiet, then the books."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from confluent_kafka import KafkaException

from schemas.values import ImageState
from streams import topics
from streams.dead_letters import DeadLetterOffice, Selection
from streams.files import FileStore, open_files
from streams.producer import open_producer
from streams.topics import AGENTS
from tests.storm.books import CommitSample, Evidence, balance
from tests.storm.evidence import CALM_OWNER, gather, outputs_of, read_log, sample_commits
from tests.storm.faults import Field, NotStruck
from tests.storm.kinds import KINDS
from tests.storm.log import read_topics
from tests.storm.pool import Pool, make_pool
from tests.storm.proxy import CALM
from tests.storm.report import Recovery, Run
from tests.storm.schedule import Planned
from tests.storm.uploads import Sent, Stream
from tests.storm.world import PROCESSES, World, running_world

Say = Callable[[str], None]

_PROBE_PATIENCE_S = 180.0
_QUIET_PATIENCE_S = 420.0
_LOOKS = 10  # of the reconciler, until it finds nothing to do
_SAMPLE_S = 2.0
_COMMITS_EVERY = 4  # samples of memory
MEMORY_LIMITS = {"core": 1_000, "ocr": 1_800, "detector": 1_500, "embedder": 1_500}  # MB; others:
_MEMORY_LIMIT = 500


@dataclass(frozen=True, slots=True)
class Shape:
    """One of the two forms of the suite."""

    images: int  # at least
    minutes: float
    fresh: int  # pictures whose pixels are new when they come


LONG = Shape(images=2000, minutes=20, fresh=60)
SHORT = Shape(images=120, minutes=2.2, fresh=14)


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens when, and where."""

    seed: int
    images: int
    minutes: float
    schedule: Sequence[Planned]
    shape: Shape
    folder: Path
    images_dir: Path
    models: Path | None
    cache: Path  # where models are converted to


@dataclass(slots=True)
class Watch:
    """Samples memory and committed offsets while the storm rages."""

    world: World
    peaks: dict[str, int] = field(default_factory=dict)
    commits: list[CommitSample] = field(default_factory=list)

    async def run(self) -> None:
        """Sample until cancelled."""
        for number in range(1_000_000):
            for name, process in self.world.processes().items():
                try:
                    self.peaks[name] = max(self.peaks.get(name, 0), process.memory_info().rss)
                except psutil.Error:
                    continue
            if number % _COMMITS_EVERY == 0:
                sample = await sample_commits(self.world.kafka, [agent for agent in AGENTS if agent != "indexer"])
                if sample is not None:
                    self.commits.append(sample)
            await asyncio.sleep(_SAMPLE_S)


async def run_storm(plan: Plan, say: Say) -> Run:
    """Run it all; return the run with its books balanced."""
    began = time.monotonic()
    pool = make_pool(plan.images_dir, fresh=plan.shape.fresh)
    say(f"seed {plan.seed}: {len(plan.schedule)} faults, {plan.images} images, {len(pool.contents)} distinct pictures")
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(running_world(plan.folder, plan.models, plan.cache))
        files = await stack.enter_async_context(open_files(world.files))
        http = await stack.enter_async_context(_http())
        say(f"[{_clock(began)}] three brokers, MinIO and {len(PROCESSES)} processes are up")
        calm = await calm_run(world, pool, files, http)
        say(f"[{_clock(began)}] calm run: {len(calm)} pictures completed")
        stream = Stream(world, pool, files, http, plan.seed)
        watch = await stack.enter_async_context(_watching(world))
        at = Field(world, stream)
        over = asyncio.Event()
        pace = plan.images / (plan.minutes * 60)
        stack.push_async_callback(stream.close)
        sending = asyncio.create_task(stream.run(plan.images, pace, over))
        stack.callback(sending.cancel)
        recoveries = [recovery async for recovery in _rage(plan.schedule, at, say)]
        over.set()
        await sending
        say(f"[{_clock(began)}] the storm is over; healing and waiting for quiet")
        await _heal(world)
        unended = await until_quiet(world, stream, say)
        mended = await _replay(world, files, stream)
        await _grow_old(world, stream, http, say)
        say(f"[{_clock(began)}] quiet; gathering the evidence")
        evidence = await gather(world.kafka, files, world.url("core"), stream.diary)
        evidence.calm, evidence.mended = calm, mended
        evidence.commits += watch.commits
        evidence.child_deaths = at.child_deaths
        evidence.poison = await _poison_found(at)
        evidence.memory = {
            name: (peak, MEMORY_LIMITS.get(name, _MEMORY_LIMIT) * 10**6) for name, peak in watch.peaks.items()
        }
        evidence.faults = [(f"{r.fault.kind} {r.fault.target}", r.why_not) for r in recoveries]
        evidence.left["partitions not whole"] = await asyncio.to_thread(world.cluster.not_whole, world.kafka.prefix)
        evidence.left["probes that did not complete"] = [
            str(r.fault) for r in recoveries if r.seconds is None and not r.why_not
        ]
        evidence.left["accepted images that did not end by themselves"] = unended
        evidence.left["processes not running"] = [name for name in PROCESSES if world.pid(name) is None]
    evidence.left["processes"] = world.left_behind()
    return Run(plan.seed, (time.monotonic() - began) / 60, evidence, balance(evidence), recoveries)


async def calm_run(world: World, pool: Pool, files: FileStore, http: httpx.AsyncClient) -> dict[str, dict[str, str]]:
    """Send each picture once without faults, for an owner of its own; return what came of those that completed."""
    calm = Stream(world, pool, files, http, seed=0, owner=CALM_OWNER)
    sent = await asyncio.gather(*(calm.tell(content) for content in pool.contents.values()))
    ends = await _until_ended(world, {str(one.image_id) for one in sent})
    wrong = [one.content for one in sent if (ends[str(one.image_id)] == ImageState.COMPLETED) != one.good]
    if wrong:
        raise RuntimeError(f"without any fault these did not end as they should: {wrong}")
    completed = [one for one in sent if one.good]
    return {one.content: await outputs_of(files, CALM_OWNER, str(one.image_id)) for one in completed}


async def _until_ended(world: World, image_ids: set[str], *, patience_s: float = _QUIET_PATIENCE_S) -> dict[str, str]:
    async with asyncio.timeout(patience_s):
        while True:
            ends = await ended(world)
            if image_ids <= ends.keys():
                return ends
            await asyncio.sleep(1)


async def ended(world: World) -> dict[str, str]:
    """Return how each image ended, as the newest outcome of its newest generation says."""
    found: dict[str, tuple[int, str]] = {}
    for record in await asyncio.to_thread(read_topics, world.kafka, [topics.OUTCOMES.name]):
        image_id, kind = record.header("ce_subject") or "", str(record.header("ce_type")).split(".")[2]
        generation = 2 if kind == ImageState.DELETED else 1
        if generation >= found.get(image_id, (0, ""))[0]:
            found[image_id] = (generation, kind)
    return {image_id: kind for image_id, (_, kind) in found.items()}


async def _rage(schedule: Sequence[Planned], at: Field, say: Say) -> AsyncIterator[Recovery]:
    """Inject each fault when it is due and the one before has been recovered from."""
    began = time.monotonic()
    for fault in schedule:
        await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
        started = time.monotonic()
        try:
            await KINDS[fault.kind](at, fault)
            recovery = Recovery(fault, await _probe(at.stream))
        except Exception as why_not:  # whatever kept it from striking is told with the rest
            recovery = Recovery(fault, None, str(why_not) if isinstance(why_not, NotStruck) else repr(why_not))
        seconds = "not recovered" if recovery.seconds is None else f"recovered in {recovery.seconds:.1f} s"
        line = f"  {started - began:6.0f} s  {fault.kind} {fault.target}: {recovery.why_not or seconds}"
        say(f"{line}  ({len(at.stream.diary)} sent)")
        yield recovery


async def _probe(stream: Stream) -> float | None:
    """Return how many seconds it takes from now until an image that is sent now, again and again, is completed."""
    began = time.monotonic()
    content = stream.pool.contents["pattern 0"]
    sent: Sent | None = None
    while time.monotonic() - began < _PROBE_PATIENCE_S:
        if sent is None or not sent.accepted:
            sent = await stream.upload(content, "core", probe=True)
        if sent.accepted:
            url = f"{stream.world.url('core')}/api/v1/images/jobs/{sent.image_id}.1"
            try:
                answer = await stream.http.get(url)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == httpx.codes.OK and answer.json()["status"] == "completed":
                return time.monotonic() - began
        await asyncio.sleep(0.2)
    return None


async def _heal(world: World) -> None:
    world.proxy.toxin = CALM
    world.read_model_file().unlink(missing_ok=True)
    await world.cluster.bring_back()
    await world.cluster.until_whole(world.kafka.prefix)
    await world.until_members(dict.fromkeys((*AGENTS, "router"), 1))


async def until_quiet(world: World, stream: Stream, say: Say, *, patience_s: float = _QUIET_PATIENCE_S) -> list[str]:
    """Wait until every accepted image has ended and nothing is left to do; return which ones have not in that time."""
    began, quiet, said, waiting = time.monotonic(), 0, 0.0, list[str]()
    while time.monotonic() - began < patience_s:
        try:
            ends = await ended(world)
            evidence = Evidence()
            await read_log(evidence, world.kafka)
        except (KafkaException, TimeoutError):
            continue
        owed = {str(sent.image_id): sent for sent in stream.diary if sent.accepted}
        waiting = [image_id for image_id, sent in owed.items() if not _is_over(sent, ends.get(image_id))]
        left = sum(evidence.uncommitted.values())
        # Twice in a row: what waits for its delay is in no agent's topic for a moment.
        quiet = quiet + 1 if not waiting and not left else 0
        if quiet >= 2:
            return []
        if time.monotonic() - said > 15:
            said = time.monotonic()
            say(f"  waiting for {len(waiting)} images and {left} events")
        await asyncio.sleep(1.5)
    say("  patience is over; the books will tell what is missing")
    return waiting


def _is_over(sent: Sent, end: str | None) -> bool:
    return end == ImageState.DELETED if sent.deleted == "yes" else end is not None


async def _grow_old(world: World, stream: Stream, http: httpx.AsyncClient, say: Say) -> None:
    """Have reconciler and janitor do what they do when time has passed: here all is quiet, so nothing comes late."""
    ages = ("RECONCILER__OVERDUE_S", "RECONCILER__AGAIN_S", "JANITOR__HORIZON_S", "JANITOR__ORPHAN_AGE_S")
    await world.restart_core(**{f"DARKROOM_{name}": "1" for name in ages}, DARKROOM_RECONCILER__INTERVAL_S="3600")
    url, report = f"{world.url('core')}/api/v1/admin/reconcile", dict[str, Any]()
    for _ in range(_LOOKS):
        with suppress(httpx.HTTPError):
            answer = await http.post(url, params={"dry_run": "false"})
            report = answer.raise_for_status().json()
            sent, swept = sum(report["sent"].values()), report["swept"]
            if not sent and not swept["waiting"] and not swept["overdue"]:
                return
            say(f"  the reconciler sent {sent} events again")
        await asyncio.sleep(1.5)
        await until_quiet(world, stream, say)
    say(f"  the reconciler is not done: {report}")


async def _replay(world: World, files: FileStore, stream: Stream) -> dict[str, str]:
    """Replay the dead letters of images that failed; return how they then end."""
    failed = {image_id for image_id, end in (await ended(world)).items() if end == ImageState.FAILED}
    ours = failed & {str(sent.image_id) for sent in stream.diary if sent.image_id}
    if not ours:
        return {}
    async with open_producer(world.kafka, source="darkroom/dead-letters") as producer:
        office = DeadLetterOffice(world.kafka, files, producer)
        for image_id in ours:
            for agent in AGENTS:
                await office.replay(agent, Selection(image_id=image_id), dry_run=False)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ends = await ended(world)
        if all(ends[image_id] != ImageState.FAILED for image_id in ours):
            break
        await asyncio.sleep(1)
    return {image_id: ends[image_id] for image_id in ours}


async def _poison_found(at: Field) -> list[tuple[str, bytes, bool]]:
    names = [topics.dead_topic(agent) for agent in AGENTS]
    letters = {
        (r.topic.partition(".")[0], r.value) for r in await asyncio.to_thread(read_topics, at.world.kafka, names)
    }
    return [(agent, value, (agent, value) in letters) for agent, value in at.poison]


@asynccontextmanager
async def _watching(world: World) -> AsyncIterator[Watch]:
    watch = Watch(world)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@asynccontextmanager
async def _http() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=80)
    async with httpx.AsyncClient(timeout=httpx.Timeout(60, connect=5), limits=limits, trust_env=False) as client:
        yield client


def _clock(began: float) -> str:
    seconds = int(time.monotonic() - began)
    return f"{seconds // 60:02}:{seconds % 60:02}"
