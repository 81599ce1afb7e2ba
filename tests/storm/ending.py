"""The end of a run: heal the faults, wait for all images, replay dead letters, reconcile."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import httpx
from confluent_kafka import KafkaException

from schemas.values import ImageState
from streams import topics
from streams.kafka.producer import open_producer
from streams.object_store.protocol import FileStore
from streams.retries.dead_letters import DeadLetterStore, Selection
from streams.topics import AGENTS
from tests.storm.evidence import Evidence
from tests.storm.gathering import read_log
from tests.storm.log import read_topics
from tests.storm.report import Say
from tests.storm.uploads import Sent, Stream
from tests.storm.world import World
from tests.support.tcp_proxy import CALM

_QUIET_PATIENCE_S = 420.0
_PASSES = 10  # of the reconciler, until it finds nothing to do


async def until_ended(world: World, image_ids: set[str], *, patience_s: float = _QUIET_PATIENCE_S) -> dict[str, str]:
    async with asyncio.timeout(patience_s):
        while True:
            ends = await ended(world)
            if image_ids <= ends.keys():
                return ends
            await asyncio.sleep(1)


async def ended(world: World) -> dict[str, str]:
    """Return the state of each image by the newest outcome of its newest generation."""
    found: dict[str, tuple[int, str]] = {}
    for record in await asyncio.to_thread(read_topics, world.kafka, [topics.OUTCOMES.name]):
        image_id, kind = record.header("ce_subject") or "", str(record.header("ce_type")).split(".")[2]
        generation = 2 if kind == ImageState.DELETED else 1
        if generation >= found.get(image_id, (0, ""))[0]:
            found[image_id] = (generation, kind)
    return {image_id: kind for image_id, (_, kind) in found.items()}


async def heal(world: World) -> None:
    world.proxy.toxin = CALM
    world.read_model_file().unlink(missing_ok=True)
    await world.cluster.restart_stopped()
    await world.cluster.until_replicated(world.kafka.prefix)
    await world.until_members(dict.fromkeys((*AGENTS, "router"), 1))


async def until_quiet(world: World, stream: Stream, say: Say, *, patience_s: float = _QUIET_PATIENCE_S) -> list[str]:
    """Wait until every accepted image has ended and no event is uncommitted; return the images that have not ended."""
    began, quiet, reported, waiting = time.monotonic(), 0, 0.0, list[str]()
    while time.monotonic() - began < patience_s:
        try:
            ends = await ended(world)
            evidence = Evidence()
            await read_log(evidence, world.kafka)
        except (KafkaException, TimeoutError):
            continue
        owed = {str(sent.image_id): sent for sent in stream.diary if sent.accepted}
        waiting = [image_id for image_id, sent in owed.items() if not _has_ended(sent, ends.get(image_id))]
        left = sum(evidence.uncommitted.values())
        # Twice in a row: between delay and retry topic an event is briefly in neither lag.
        quiet = quiet + 1 if not waiting and not left else 0
        if quiet >= 2:
            return []
        if time.monotonic() - reported > 15:
            reported = time.monotonic()
            say(f"  waiting for {len(waiting)} images and {left} events")
        await asyncio.sleep(1.5)
    say("  timeout; the checks will report what is missing")
    return waiting


def _has_ended(sent: Sent, end: str | None) -> bool:
    return end == ImageState.DELETED if sent.deleted == "yes" else end is not None


async def run_maintenance(world: World, stream: Stream, http: httpx.AsyncClient, say: Say) -> None:
    """Restart the core with short ages and run reconciler and janitor until they find nothing. Needs a quiet system."""
    ages = ("RECONCILER__OVERDUE_S", "RECONCILER__AGAIN_S", "JANITOR__HORIZON_S", "JANITOR__ORPHAN_AGE_S")
    more = {"DARKROOM_RECONCILER__INTERVAL_S": "3600", "DARKROOM_JANITOR__OBJECTS_PER_SWEEP": "1000000"}
    await world.restart_core(**{f"DARKROOM_{name}": "1" for name in ages}, **more)
    url, report = f"{world.url('core')}/api/v1/admin/reconcile", dict[str, Any]()
    for _ in range(_PASSES):
        with suppress(httpx.HTTPError):
            answer = await http.post(url, params={"dry_run": "false"})
            report = answer.raise_for_status().json()
            sent, swept = sum(report["sent"].values()), report["swept"]
            removed = swept["abandoned"] + swept["orphans_removed"] + swept["outdated"]
            if not sent and not removed and not swept["waiting"] and not swept["overdue"]:
                return
            say(f"  the reconciler sent {sent} events again, the janitor removed {removed} orphaned objects")
        await asyncio.sleep(1.5)
        await until_quiet(world, stream, say)
    say(f"  the reconciler still finds work: {report}")


async def replay(world: World, files: FileStore, stream: Stream) -> dict[str, str]:
    """Replay the dead letters of failed images; return their states afterwards."""
    failed = {image_id for image_id, end in (await ended(world)).items() if end == ImageState.FAILED}
    ours = failed & {str(sent.image_id) for sent in stream.diary if sent.image_id}
    if not ours:
        return {}
    async with open_producer(world.kafka, source="darkroom/dead-letters") as producer:
        dead_letters = DeadLetterStore(world.kafka, files, producer)
        for image_id in ours:
            for agent in AGENTS:
                await dead_letters.replay(agent, Selection(image_id=image_id), dry_run=False)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ends = await ended(world)
        if all(ends[image_id] != ImageState.FAILED for image_id in ours):
            break
        await asyncio.sleep(1)
    return {image_id: ends[image_id] for image_id in ours}
