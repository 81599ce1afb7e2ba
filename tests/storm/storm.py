"""A run of the fault suite: first without faults, then with the schedule of faults, then the checks."""

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
from tests.storm.ending import heal, replay, run_maintenance, until_ended, until_quiet
from tests.storm.faults import Field, NotInjected
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
    """The size of a run: long or short."""

    images: int  # at least
    minutes: float
    fresh: int  # pictures with pixels not seen before
    variants: bool  # whether to add mirrored photos, for more distinct pictures


LONG = Shape(images=2000, minutes=20, fresh=60, variants=True)
SHORT = Shape(images=120, minutes=2.2, fresh=10, variants=False)


@dataclass(frozen=True, slots=True)
class Plan:
    """The parameters of a run."""

    seed: int
    images: int
    minutes: float
    schedule: Sequence[Planned]
    shape: Shape
    folder: Path
    images_dir: Path
    models: Path | None
    cache: Path  # of converted models


async def run_storm(plan: Plan, say: Say) -> Run:
    """Run the plan; return the results of all checks."""
    began = time.monotonic()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # broker outages are expected here
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
        finished = asyncio.Event()
        pace = plan.images / (plan.minutes * 60)
        stack.push_async_callback(stream.close)
        sending = asyncio.create_task(stream.run(plan.images, pace, finished))
        stack.callback(sending.cancel)
        recoveries = [recovery async for recovery in _inject_all(plan.schedule, at, say)]
        finished.set()
        await sending
        say(f"[{_clock(began)}] all faults injected; healing and waiting for all images")
        await heal(world)
        unended = await until_quiet(world, stream, say)
        replayed = await replay(world, files, stream)
        await run_maintenance(world, stream, http, say)
        say(f"[{_clock(began)}] all images ended; collecting the evidence")
        evidence = await gather(world.kafka, files, world.url("core"), stream.diary)
        evidence.calm, evidence.replayed = calm, replayed
        evidence.commits += watch.commits
        evidence.child_deaths = at.child_deaths
        evidence.poison = await _poison_found(at)
        evidence.memory = watch.memory()
        evidence.faults = [(f"{r.fault.kind} {r.fault.target}", r.why_not) for r in recoveries]
        evidence.left["under-replicated partitions"] = await asyncio.to_thread(
            world.cluster.under_replicated, world.kafka.prefix
        )
        evidence.left["probes that did not complete"] = [
            str(r.fault) for r in recoveries if r.seconds is None and not r.why_not
        ]
        evidence.left["accepted images that did not end without the reconciler"] = unended
        evidence.left["processes not running"] = [name for name in PROCESSES if world.pid(name) is None]
    evidence.left["processes"] = world.left_behind()
    return Run(plan.seed, (time.monotonic() - began) / 60, evidence, balance(evidence), recoveries)


async def calm_run(world: World, pool: Pool, files: FileStore, http: httpx.AsyncClient) -> dict[str, dict[str, str]]:
    """Upload each picture once without faults, for a separate owner; return the outputs of the completed ones."""
    calm = Stream(world, pool, files, http, seed=0, owner=CALM_OWNER)
    sent = await asyncio.gather(*(calm.publish(content) for content in pool.contents.values()))
    ends = await until_ended(world, {str(one.image_id) for one in sent})
    wrong = [one.content for one in sent if (ends[str(one.image_id)] == ImageState.COMPLETED) != one.good]
    if wrong:
        raise RuntimeError(f"wrong outcomes without faults: {wrong}")
    completed = [one for one in sent if one.good]
    return {one.content: await outputs_of(files, CALM_OWNER, str(one.image_id)) for one in completed}


async def _inject_all(schedule: Sequence[Planned], at: Field, say: Say) -> AsyncIterator[Recovery]:
    """Inject each fault at its time, after the recovery from the one before."""
    began = time.monotonic()
    for fault in schedule:
        await asyncio.sleep(max(0.0, began + fault.at_s - time.monotonic()))
        started = time.monotonic()
        try:
            await KINDS[fault.kind](at, fault)
            recovery = Recovery(fault, await _probe(at.stream, fault.target.partition(" ")[0]))
        except Exception as why_not:  # reported as the reason why it was not injected
            recovery = Recovery(fault, None, str(why_not) if isinstance(why_not, NotInjected) else repr(why_not))
        seconds = "not recovered" if recovery.seconds is None else f"recovered in {recovery.seconds:.1f} s"
        line = f"  {started - began:6.0f} s  {fault.kind} {fault.target}: {recovery.why_not or seconds}"
        say(f"{line}  ({len(at.stream.diary)} sent)")
        yield recovery


async def _probe(stream: Stream, name: str) -> float | None:
    """Return the seconds until an image uploaded now, with retries, completes; None on timeout.

    It is sent through the named process, if that one processes only some images.
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
