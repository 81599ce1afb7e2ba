"""One image through the running system, heard as it happens, and told of afterwards."""

from __future__ import annotations

import asyncio
import io
import random
from collections import Counter
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.e2e.whole import PATIENCE_S, Whole
from tests.support.server_sent_events import Sse, listening

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system

STAGES = ("sanitizer", "resizer", "ocr", "detector", "embedder")


@pytest.fixture(scope="module")
def job(whole: Whole) -> tuple[str, list[Sse]]:
    """Submit an image nobody has seen; return its id, and what the stream of its job said to its end."""
    picture = Image.effect_noise((320, 240), random.uniform(40, 120)).convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    submitted = whole.client.submit(stream.getvalue())

    async def heard() -> list[Sse]:
        async with (
            asyncio.timeout(PATIENCE_S),
            httpx.AsyncClient(base_url=whole.url, timeout=PATIENCE_S, trust_env=False) as client,
            listening(client, f"/api/v1/images/jobs/{submitted.job_id}/events") as source,
        ):
            return await source.rest()

    return submitted.image_id, asyncio.run(heard())


def test_a_job_is_heard_from_its_snapshot_to_its_end(job: tuple[str, list[Sse]]) -> None:
    """What the snapshot does not know of the five stages comes as it happens, each once, and then the outcome."""
    _image_id, events = job
    first, *between, last = events
    assert (first.name, last.name) == ("snapshot", "completed")
    known = [name for name, stage in first.data["stages"].items() if stage["state"] != "pending"]
    assert Counter([*known, *(event.data["stage"] for event in between)]) == Counter(STAGES)
    assert {event.data["state"] for event in between} <= {"done", "skipped"}
    assert not [event for event in between if event.data["state"] == "skipped" and not event.data["reason"]]


def test_a_history_names_worker_and_trace_of_every_stage(whole: Whole, job: tuple[str, list[Sse]]) -> None:
    """From acceptance to end: each stage once, by a process of this machine, in the one trace of the image."""
    items = _told(whole, job[0], "history")["items"]
    assert (items[0]["kind"], items[0]["via"], items[-1]["kind"], items[-1]["state"]) == (
        "accepted", "upload", "ended", "completed",
    )  # fmt: skip
    staged = [item for item in items if item["kind"] == "stage"]
    assert Counter(item["stage"] for item in staged) == Counter(STAGES)
    assert len({item["worker"] for item in staged}) == len(STAGES)
    assert len({item["trace_id"] for item in staged}) == 1
    assert all(item["attempts"] >= 1 and item["duration_ms"] >= 0 and item["position"] for item in staged)


def test_a_lineage_names_code_weights_and_input_of_every_result(whole: Whole, job: tuple[str, list[Sse]]) -> None:
    """Every stage's result is known: the analysis from the master, the master from the original, models by hash."""
    found = _told(whole, job[0], "lineage")
    origins = {stage: origin for stage, origin in found["origins"].items() if origin["stage_state"] == "done"}
    assert {"sanitizer", "resizer", "ocr", "detector"} <= origins.keys()  # CLIP's weights are not everywhere
    assert {origin["state"] for origin in origins.values()} == {"known"}
    master = next(item["sha256"] for item in found["items"] if item["kind"] == "master")
    assert origins["sanitizer"]["input_sha256"] == found["original_sha256"]
    assert {origin["input_sha256"] for stage, origin in origins.items() if stage != "sanitizer"} == {master}
    assert all(len(origins[name]["models"][0]["sha256"]) == 64 for name in {"detector", "embedder"} & origins.keys())
    assert len({origin["trace_id"] for origin in origins.values()}) == 1
    assert {item["stage"] for item in found["items"]} <= origins.keys()
    assert all(origin["detail"] for origin in found["origins"].values() if origin["state"] != "known")


def _told(whole: Whole, image_id: str, what: str) -> dict[str, Any]:
    answer = httpx.get(f"{whole.url}/api/v1/images/{image_id}/{what}", timeout=PATIENCE_S, trust_env=False)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found
