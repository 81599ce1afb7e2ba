"""The live events, history and lineage of one image."""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.system import PATIENCE_S, RunningSystem
from tests.support.server_sent_events import Sse, listening

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system

STAGES = ("sanitizer", "resizer", "ocr", "detector", "embedder")


@pytest.fixture(scope="module")
def job(system: RunningSystem) -> tuple[str, list[Sse]]:
    """Submit a new random image; return its id and all events of its job's stream."""
    picture = Image.effect_noise((320, 240), random.uniform(40, 120)).convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    submitted = system.client.submit(stream.getvalue())

    async def events() -> list[Sse]:
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(base_url=system.url, timeout=PATIENCE_S, trust_env=False) as client,
            listening(client, f"/api/v1/images/jobs/{submitted.job_id}/events") as source,
        ):
            return await source.rest()

    return submitted.image_id, asyncio.run(events())


def test_a_stream_delivers_every_stage_and_the_outcome(job: tuple[str, list[Sse]]) -> None:
    """After the snapshot, each stage that it has pending is delivered once, and then the outcome."""
    _image_id, events = job
    first, *between, last = events
    assert (first.name, last.name) == ("snapshot", "completed")
    known = [name for name, stage in first.data["stages"].items() if stage["state"] != "pending"]
    assert Counter([*known, *(event.data["stage"] for event in between)]) == Counter(STAGES)
    assert {event.data["state"] for event in between} <= {"done", "skipped"}
    assert not [event for event in between if event.data["state"] == "skipped" and not event.data["reason"]]


def test_a_history_has_worker_and_trace_of_every_stage(system: RunningSystem, job: tuple[str, list[Sse]]) -> None:
    """From acceptance to outcome, each stage appears once with its worker, all in one trace."""
    items = _get(system, job[0], "history")["items"]
    assert (items[0]["kind"], items[0]["via"], items[-1]["kind"], items[-1]["state"]) == (
        "accepted", "upload", "ended", "completed",
    )  # fmt: skip
    staged = [item for item in items if item["kind"] == "stage"]
    assert Counter(item["stage"] for item in staged) == Counter(STAGES)
    assert len({item["worker"] for item in staged}) == len(STAGES)
    assert len({item["trace_id"] for item in staged}) == 1
    assert all(item["attempts"] >= 1 and item["duration_ms"] >= 0 and item["position"] for item in staged)


def test_a_lineage_has_input_and_models_of_every_result(system: RunningSystem, job: tuple[str, list[Sse]]) -> None:
    """Every result has a known origin: analysis from the master, master from the original, models by hash."""
    found = _get(system, job[0], "lineage")
    origins = {stage: origin for stage, origin in found["origins"].items() if origin["stage_state"] == "done"}
    assert {"sanitizer", "resizer", "ocr", "detector"} <= origins.keys()  # CLIP's weights may be missing
    assert {origin["state"] for origin in origins.values()} == {"known"}
    master = next(item["sha256"] for item in found["items"] if item["kind"] == "master")
    assert origins["sanitizer"]["input_sha256"] == found["original_sha256"]
    assert {origin["input_sha256"] for stage, origin in origins.items() if stage != "sanitizer"} == {master}
    assert all(len(origins[name]["models"][0]["sha256"]) == 64 for name in {"detector", "embedder"} & origins.keys())
    assert len({origin["trace_id"] for origin in origins.values()}) == 1
    assert {item["stage"] for item in found["items"]} <= origins.keys()
    assert all(origin["detail"] for origin in found["origins"].values() if origin["state"] != "known")


def _get(system: RunningSystem, image_id: str, resource: str) -> dict[str, Any]:
    answer = httpx.get(f"{system.url}/api/v1/images/{image_id}/{resource}", timeout=PATIENCE_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
