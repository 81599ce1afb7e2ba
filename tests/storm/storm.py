"""The run: calm first, then the storm, then quiet, then the books."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from schemas.values import ImageState
from streams import topics
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.topics import AGENTS
from tests.storm.books import balance
from tests.storm.ending import grow_old, heal, replay, until_ended, until_quiet
from tests.storm.faults import Field, NotStruck
from tests.storm.gathering import CALM_OWNER, gather, outputs_of
from tests.storm.kinds import KINDS
from tests.storm.log import read_topics
from tests.storm.pool import Content, Pool, make_pool
from tests.storm.report import Recovery, Run, Say
from tests.storm.schedule import Planned
from tests.storm.uploads import Sent, Stream
from tests.storm.watch import watching
from tests.storm.world import PROCESSES, World, running_world

_PROBE_PATIENCE_S = 180.0


@dataclass(frozen=True, slots=True)
class Shape:
    """One of the two forms of the suite."""

    images: int  # at least
    minutes: float
    fresh: int  # pictures whose pixels are new when they come
    variants: bool  # whether photos come mirrored too, and so on: more distinct pictures


LONG = Shape(images=2000, minutes=20, fresh=60, variants=True)
SHORT = Shape(images=120, minutes=2.2, fresh=10, variants=False)


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


async def run_storm(plan: Plan, say: Say) -> Run:
    """Run it all; return the run with its books balanced."""
    began = time.monotonic()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # that brokers are away is no news here
    pool = make_pool(plan.images_dir, fresh=plan.shape.fresh, variants=plan.shape.variants)
    say(f"seed {plan.seed}: {len(plan.schedule)} faults, {plan.images} images, {len(pool.contents)} distinct pictures")
    async with AsyncExitStack() as stack:
        world = await stack.enter_async_context(running_world(plan.folder, plan.models, plan.cache))
        files = await stack.enter_async_context(open_files(world.files))
        http = await stack.enter_async_context(_http())
        say(f"[{_clock(began)}] three brokers, MinIO and {len(PROCESSES)} processes are up")
        calm = await calm_run(world, pool, files, http)
        say(f"[{_clock(began)}] calm run: {len(calm)} pictures completed")
        stream = Stream(world, pool, files, http, plan.seed)
        watch = await stack.enter_async_context(watching(world))
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
        await heal(world)
        unended = await until_quiet(world, stream, say)
        mended = await replay(world, files, stream)
        await grow_old(world, stream, http, say)
        say(f"[{_clock(began)}] quiet; gathering the evidence")
        evidence = await gather(world.kafka, files, world.url("core"), stream.diary)
        evidence.calm, evidence.mended = calm, mended
        evidence.commits += watch.commits
        evidence.child_deaths = at.child_deaths
        evidence.poison = await _poison_found(at)
        evidence.memory = watch.memory()
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
    ends = await until_ended(world, {str(one.image_id) for one in sent})
    wrong = [one.content for one in sent if (ends[str(one.image_id)] == ImageState.COMPLETED) != one.good]
    if wrong:
        raise RuntimeError(f"without any fault these did not end as they should: {wrong}")
    completed = [one for one in sent if one.good]
    return {one.content: await outputs_of(files, CALM_OWNER, str(one.image_id)) for one in completed}


async def _rage(schedule: Sequence[Planned], at: Field, say: Say) -> AsyncIterator[Recovery]:
    """Inject each fault when it is due and the one before has been recovered from."""
    began = time.monotonic()
    for fault in schedule:
        await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
        started = time.monotonic()
        try:
            await KINDS[fault.kind](at, fault)
            recovery = Recovery(fault, await _probe(at.stream, fault.target.partition(" ")[0]))
        except Exception as why_not:  # whatever kept it from striking is told with the rest
            recovery = Recovery(fault, None, str(why_not) if isinstance(why_not, NotStruck) else repr(why_not))
        seconds = "not recovered" if recovery.seconds is None else f"recovered in {recovery.seconds:.1f} s"
        line = f"  {started - began:6.0f} s  {fault.kind} {fault.target}: {recovery.why_not or seconds}"
        say(f"{line}  ({len(at.stream.diary)} sent)")
        yield recovery


async def _probe(stream: Stream, name: str) -> float | None:
    """Return how many seconds it takes from now until an image that is sent now, again and again, is completed.

    It goes the way of the process of that name, if only some images do.
    """
    began = time.monotonic()
    content = stream.pool.contents["pattern 0"]
    sent: Sent | None = None
    while time.monotonic() - began < _PROBE_PATIENCE_S:
        if sent is None or not sent.accepted:
            sent = await _send_through(stream, content, name)
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


async def _poison_found(at: Field) -> list[tuple[str, bytes, bool]]:
    names = [topics.dead_topic(agent) for agent in AGENTS]
    letters = {
        (r.topic.partition(".")[0], r.value) for r in await asyncio.to_thread(read_topics, at.world.kafka, names)
    }
    return [(agent, value, (agent, value) in letters) for agent, value in at.poison]


@asynccontextmanager
async def _http() -> AsyncIterator[httpx.AsyncClient]:
    limits = httpx.Limits(max_connections=80)
    async with httpx.AsyncClient(timeout=httpx.Timeout(60, connect=5), limits=limits, trust_env=False) as client:
        yield client


def _clock(began: float) -> str:
    seconds = int(time.monotonic() - began)
    return f"{seconds // 60:02}:{seconds % 60:02}"


async def _send_through(stream: Stream, content: Content, name: str) -> Sent:
    if name == "fetcher":
        return await stream.fetch(content, "core")
    lane = "bulk" if name == "router" else "interactive"  # the bulk lane's scheduler is part of the router
    return await stream.upload(content, "ingest" if name == "ingest" else "core", lane=lane)
