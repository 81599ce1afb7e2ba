"""Collects the evidence: topics, stored objects and gateway responses after the run, and commits during it."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import time
from collections import defaultdict
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import httpx
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError

from schemas.events.envelope import Record
from schemas.events.facts import ImageRefused
from streams import topics
from streams.errors import DependencyUnavailable
from streams.object_store.keys import image_prefix
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.retries.retry_policy import ORIGIN_HEADERS
from streams.settings import KafkaSettings
from streams.topics import AGENTS
from tests.storm.evidence import ABSENT, GONE, CommitSample, Evidence, Position, RecordedOutcome
from tests.storm.log import read_topics
from tests.storm.uploads import NUMBER, Sent

OWNER = "default"
CALM_OWNER = "calm"  # owner of the run without faults
_WORK = (topics.UPLOADED, topics.FETCH_REQUESTED, topics.FETCHED, topics.SANITIZED)
ROUTER = "router"
_COMPARED = ("ocr", "detector")  # stages whose results contain no object keys
_PARALLEL = 12
_RETRY_TOPIC = re.compile(r"\.(delay\..+|dead|retry)$")


def consumed_by(agent: str, agents: Sequence[str] = AGENTS) -> list[str]:
    """Return the logical topics of a group: an agent's, the router's or the scheduler's."""
    if agent == ROUTER:
        return [topics.delay_topic(name, tier) for name in agents for tier in topics.DELAY_TIERS]
    if agent == topics.SCHEDULER:
        return [topics.BULK.name]
    return [topic.name for topic in topics.PIPELINE if agent in topic.readers] + [topics.retry_topic(agent)]


async def sample_commits(kafka: KafkaSettings, agents: Sequence[str] = AGENTS) -> CommitSample | None:
    """Return the committed offsets of the groups; None if Kafka does not answer."""
    client = AIOKafkaAdminClient(bootstrap_servers=kafka.bootstrap, request_timeout_ms=8_000)
    try:
        await client.start()
        offsets: dict[tuple[str, str, int], int] = {}
        for agent in agents:
            found = await client.list_consumer_group_offsets(kafka.group(agent))
            for place, committed in found.items():
                if committed.offset >= 0:
                    offsets[agent, kafka.logical(place.topic), place.partition] = committed.offset
        return CommitSample(time.time(), offsets)
    except (KafkaError, OSError, TimeoutError):
        return None
    finally:
        with suppress(Exception):  # closing an unconnected client may fail
            await client.close()


async def gather(
    kafka: KafkaSettings, files: FileStore, url: str, sent: Sequence[Sent], *, agents: Sequence[str] = AGENTS
) -> Evidence:
    """Return the evidence of all images of the run."""
    evidence = Evidence(sent=list(sent))
    others = await read_log(evidence, kafka, agents)
    await _list_objects(evidence, files, others)
    accepted = {key.removeprefix("jobs/").partition(".")[0] for key in evidence.keys if key.startswith("jobs/")}
    await _ask_states(evidence, url, {*evidence.number_of, *accepted, *(one.image_id for one in sent if one.image_id)})
    await _read_objects(evidence, files)
    sample = await sample_commits(kafka, agents)
    if sample is not None:
        evidence.commits.append(sample)
    return evidence


async def read_log(evidence: Evidence, kafka: KafkaSettings, agents: Sequence[str] = AGENTS) -> set[str]:
    """Read the topics into the evidence; return the image ids of other owners."""
    names = [topic.name for topic in (*_WORK, topics.FACTS, topics.OUTCOMES, topics.BULK)]
    names += [topic.name for agent in agents for topic in topics.agent_topics(agent)]
    records = await asyncio.to_thread(read_topics, kafka, names)
    others: set[str] = set()
    for record in records:
        body = _body(record)
        if body.get("owner", OWNER) != OWNER:
            others.add(str(body.get("image_id")))
            continue
        _record(evidence, record, body)
    evidence.uncommitted = await _uncommitted(kafka, records, agents)
    return others


def _record(evidence: Evidence, record: Record, body: dict[str, Any]) -> None:
    image_id = str(body.get("image_id") or record.header("ce_subject") or "")
    at = record.timestamp_ms / 1000
    if _RETRY_TOPIC.search(record.topic):
        agent, _, kind = record.topic.partition(".")
        if kind != "retry":
            names = [f"dlq.original.{part}" for part in _PARTS] if kind == "dead" else ORIGIN_HEADERS
            _divert(evidence, agent, [record.header(name) for name in names], at)
            evidence.follow_ups.setdefault((agent, image_id), at)
        if kind == "dead" and image_id:
            evidence.dead_letters.setdefault(image_id, set()).add(record.header("dlq.error.code") or "")
        return
    number = (body.get("context") or {}).get(NUMBER)
    if isinstance(number, int) and image_id:
        evidence.number_of[image_id] = number
    if record.topic == topics.OUTCOMES.name:
        kind = str(record.header("ce_type")).split(".")[2]
        generation = int(body.get("generation", 1))
        evidence.outcomes.append(RecordedOutcome(image_id, generation, str(record.header("ce_id")), kind))
        return
    if original := body.get("original"):
        evidence.hashes.setdefault(image_id, set()).add(str(original.get("sha256")))
    if record.topic == topics.FACTS.name:
        stage = str((body.get("report") or {}).get("stage"))
        evidence.follow_ups[stage, image_id] = min(at, evidence.follow_ups.get((stage, image_id), at))
        if record.header("ce_type") == ImageRefused.type:
            evidence.refusals.setdefault(image_id, (str(body.get("code")), at))
        if master := (body.get("image") or {}).get("master"):
            evidence.hashes.setdefault(image_id, set()).add(str(master.get("sha256")))
        return
    if record.topic == topics.FETCHED.name:
        evidence.follow_ups.setdefault(("fetcher", image_id), at)
    if record.topic == topics.BULK.name:
        return
    evidence.positions.append(Position(record.topic, record.partition, record.offset, image_id or None))


_PARTS = ("topic", "partition", "offset")


def _divert(evidence: Evidence, agent: str, origin: list[str | None], at: float) -> None:
    topic, partition, offset = origin
    if topic is not None and partition is not None and offset is not None:
        evidence.diverted.setdefault((agent, topic, int(partition), int(offset)), at)


def _body(record: Record) -> dict[str, Any]:
    try:
        body = json.loads(record.value or b"{}")
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


async def _uncommitted(kafka: KafkaSettings, records: list[Record], agents: Sequence[str]) -> dict[str, int]:
    groups = (*agents, ROUTER, topics.SCHEDULER) if agents == AGENTS else agents
    sample = await sample_commits(kafka, groups)
    committed = sample.offsets if sample is not None else {}
    found: dict[str, int] = defaultdict(int)
    for agent in groups:
        consumed = consumed_by(agent, agents)
        for record in records:
            if record.topic in consumed:
                place = (agent, record.topic, record.partition)
                found[f"{agent} {record.topic}/{record.partition}"] += record.offset >= committed.get(place, 0)
    return dict(found)


async def _ask_states(evidence: Evidence, url: str, images: set[str]) -> None:
    room = asyncio.Semaphore(_PARALLEL)
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:

        async def ask(image_id: str) -> None:
            async with room:
                answer = await http.get(f"/api/v1/images/jobs/{image_id}.1")
            body = answer.json()
            if answer.status_code != httpx.codes.OK:
                known = {httpx.codes.GONE: GONE, httpx.codes.NOT_FOUND: ABSENT}
                evidence.states[image_id] = known.get(httpx.codes(answer.status_code), f"answered {answer.status_code}")
                return
            evidence.states[image_id] = body["status"]
            if body["status"] == "completed":
                stages = {name: stage["state"] for name, stage in body["stages"].items()}
                evidence.unfinished[image_id] = [n for n, state in stages.items() if state not in {"done", "skipped"}]

        await asyncio.gather(*(ask(image_id) for image_id in images))


async def _list_objects(evidence: Evidence, files: FileStore, others: set[str]) -> None:
    async for found in files.list(""):
        if others.isdisjoint(found.key.split("/")) and f"/{CALM_OWNER}/" not in found.key:
            evidence.keys.add(found.key)


async def _read_objects(evidence: Evidence, files: FileStore) -> None:
    room = asyncio.Semaphore(_PARALLEL)

    async def image(image_id: str) -> None:
        async with room:
            evidence.outputs[image_id] = await outputs_of(files, OWNER, image_id)

    async def receipt(key: str) -> None:
        async with room:
            with suppress(ObjectMissing, ValueError):
                number = (json.loads(await files.get(key)).get("context") or {}).get(NUMBER)
                job_id = key.removeprefix("jobs/").removesuffix(".json")
                evidence.receipts[job_id] = number
                if isinstance(number, int):
                    evidence.number_of.setdefault(job_id.partition(".")[0], number)

    completed = [image_id for image_id, state in evidence.states.items() if state == "completed"]
    await asyncio.gather(*map(image, completed))
    await asyncio.gather(*(receipt(key) for key in evidence.keys if key.startswith("jobs/")))


async def outputs_of(files: FileStore, owner: str, image_id: str) -> dict[str, str]:
    """Return the sha256 of every file of an image by name, and of its OCR and detection results by stage."""
    found: dict[str, str] = {}
    async for info in files.list(image_prefix(image_id)):
        with suppress(ObjectMissing, DependencyUnavailable):
            found[info.key.rsplit("/", 1)[-1]] = hashlib.sha256(await files.get(info.key)).hexdigest()
    masters = [sha for name, sha in found.items() if name.startswith("master.")]
    for stage in _COMPARED:
        for sha in masters:
            async for info in files.list(f"results/{owner}/{sha}/{stage}/"):
                with suppress(ObjectMissing, DependencyUnavailable):
                    result = json.loads(await files.get(info.key))["result"]
                    text = json.dumps(result, sort_keys=True)
                    found[stage] = hashlib.sha256(text.encode()).hexdigest()
    return found
