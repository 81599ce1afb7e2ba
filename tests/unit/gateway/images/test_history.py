"""History: every event of an image once, in any order of delivery, as long as the image exists."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from agents.stages.indexer import STAGE, index
from schemas.events.facts import DeletionRequested, ImageAnnotated
from schemas.stored.receipts import ReceiptKind
from schemas.values import DEFAULT_OWNER, StageState, new_image_id
from streams.kafka.messages import outgoing
from streams.read_model.records import HISTORY_LIMIT, HistoryEntry, shortened
from streams.telemetry.tracing import new_traceparent, trace_id
from streams.testing.memory_log import MemoryLog, MemoryWorker
from streams.topics import FACTS
from tests.support.archive import Archive, archive, reported
from tests.support.facts import WHEN, Facts
from tests.support.gateway_components import refused
from tests.support.read_models import merge
from tests.support.stage_kit import bench

LATER = "2026-01-02T00:00:00.000Z"


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Archive]:
    """A gateway and the indexer's tools."""
    async with archive(tmp_path) as house:
        yield house


async def test_an_image_has_a_history_from_the_202_on(house: Archive) -> None:
    """Before any event is indexed, the receipt provides time, kind and lane."""
    image_id = await house.accepted(ReceiptKind.FETCH)
    assert await house.get(image_id, "history") == {
        "image_id": image_id,
        "items": [{"at": WHEN, "kind": "accepted", "via": "fetch", "lane": "bulk", "job_id": f"{image_id}.1"}],
        "cut": False,
    }


async def test_an_item_has_worker_time_and_trace(house: Archive) -> None:
    """Through the runtime each event has its worker, attempts, duration, trace and log position."""
    image_id = await house.accepted()
    log, trace = MemoryLog(), new_traceparent()
    stage = replace(STAGE, process=lambda event, _tools: index(event, house.tools))
    worker = MemoryWorker(log, "indexer", [FACTS.name], bench(stage, house.tools.files, log).intake)
    facts = Facts(image_id, owner=DEFAULT_OWNER, placed=True)
    fact = reported(facts.resized(), worker="node-3/17", attempts=2, duration_ms=41)
    await log.deliver([outgoing(FACTS, fact, source="test", traceparent=trace)])
    await worker.until_idle()
    await worker.stop()
    record = log.records(FACTS.name)[0]
    found = (await house.get(image_id, "history"))["items"][-1]
    taken = found.pop("recorded_at")
    assert found == {
        "at": WHEN, "kind": "stage", "job_id": f"{image_id}.1", "event": "darkroom.image.resized.v1",
        "event_id": fact.id, "stage": "resizer", "state": "done", "attempts": 2, "duration_ms": 41, "version": "1",
        "worker": "node-3/17", "trace_id": trace_id(trace),
        "position": f"image.facts/{record.partition}/{record.offset}",
    }  # fmt: skip
    assert taken > WHEN and taken.endswith("Z")


async def test_order_and_repetition_change_nothing(house: Archive) -> None:
    """Events in any order, each several times, give one history: one entry per event, sorted by time, with the end."""
    expected = None
    for seed in range(4):
        image_id = await house.accepted()
        facts = [*Facts(image_id, owner=DEFAULT_OWNER).all(), Facts(image_id, owner=DEFAULT_OWNER).failed("ocr")] * 2
        random.Random(seed).shuffle(facts)
        await house.index(*facts)
        items = (await house.get(image_id, "history"))["items"]
        assert [item["at"] for item in items] == sorted(item["at"] for item in items)
        kinds = sorted((item["kind"], item.get("stage", ""), item.get("state", "")) for item in items)
        assert expected in (None, kinds)
        expected = kinds
    assert expected == sorted(
        [("accepted", "", ""), ("ended", "", "completed"), ("stage", "ocr", "failed")]
        + [("stage", name, "done") for name in ("sanitizer", "resizer", "ocr", "detector", "embedder")]
    )


async def test_each_attempt_is_an_item(house: Archive) -> None:
    """A stage that failed, failed again after a replay and then succeeded has three items, with reasons."""
    image_id = await house.accepted()
    failed = Facts(image_id, owner=DEFAULT_OWNER).failed("ocr")
    again = failed.model_copy(update={"occurred_at": LATER})
    await house.index(failed, again, Facts(image_id, owner=DEFAULT_OWNER).text())
    items = [item for item in (await house.get(image_id, "history"))["items"] if item["kind"] == "stage"]
    assert [(item["at"], item["state"], item.get("reason")) for item in items if item["state"] == "failed"] == [
        (WHEN, "failed", "internal-error"),
        (LATER, "failed", "internal-error"),
    ]
    assert len(items) == 3


async def test_reruns_and_annotations_are_in_the_history(house: Archive) -> None:
    """The history contains the request of a rerun, the rerun's result, and a change of tags."""
    image_id = await house.accepted()
    await house.index(*Facts(image_id, owner=DEFAULT_OWNER).all())
    await house.index(Facts(image_id, owner=DEFAULT_OWNER, run=1_800_000_000_123).resized())
    await house.index(ImageAnnotated(image_id=image_id, owner=DEFAULT_OWNER, revision=1, tags=("a",)))
    items = (await house.get(image_id, "history"))["items"]
    rerun = next(item for item in items if item["kind"] == "rerun-requested")
    assert (rerun["at"], rerun["stage"]) == ("2027-01-15T08:00:00.123Z", "resizer")
    assert [item["run"] for item in items if item["kind"] == "stage" and "run" in item] == [1_800_000_000_123]
    assert [item["event"] for item in items if item["kind"] == "annotated"] == ["darkroom.image.annotated.v1"]


async def test_a_newer_generation_keeps_the_history(house: Archive) -> None:
    """After a rerun of all stages the history of the earlier run is kept."""
    image_id = await house.accepted()
    await house.index(*Facts(image_id, owner=DEFAULT_OWNER).all())
    await house.accepted(ReceiptKind.REPROCESS, image_id, 2)
    await house.index(Facts(image_id, owner=DEFAULT_OWNER, generation=2).sanitized())
    items = (await house.get(image_id, "history"))["items"]
    jobs = [item["job_id"] for item in items if item["kind"] == "stage"]
    assert sorted(jobs) == [f"{image_id}.1"] * 5 + [f"{image_id}.2"]
    assert [item["job_id"] for item in items if item["kind"] == "rerun-requested"] == [f"{image_id}.2"]


async def test_an_image_of_another_service_has_one_too(house: Archive) -> None:
    """Without a receipt the acceptance comes from the event's own fields."""
    image_id = new_image_id()
    await house.index(Facts(image_id, owner=DEFAULT_OWNER).sanitized())
    assert (await house.get(image_id, "history"))["items"][0] == {
        "at": WHEN, "kind": "accepted", "via": "event", "job_id": f"{image_id}.1",
    }  # fmt: skip


async def test_a_history_is_deleted_with_its_image(house: Archive) -> None:
    """It is hidden as soon as the deletion is accepted, and removed with the image."""
    image_id = await house.accepted()
    await house.index(*Facts(image_id, owner=DEFAULT_OWNER).all())
    assert len(await house.tools.read_model.history(image_id)) == 5
    await house.accepted(ReceiptKind.DELETE, image_id, 2)
    refused(await house.client.get(f"/api/v1/images/{image_id}/history"), 410, "gone")
    await house.index(DeletionRequested(image_id=image_id, owner=DEFAULT_OWNER, generation=2))
    await house.index(Facts(image_id, owner=DEFAULT_OWNER).text())
    assert await house.tools.read_model.history(image_id) == {}
    refused(await house.client.get(f"/api/v1/images/{image_id}/history"), 410, "gone")


async def test_another_owners_history_is_not_found(house: Archive) -> None:
    """Another owner's image has the same response as an unknown id."""
    image_id = await house.accepted()
    await house.index(Facts(image_id, owner=DEFAULT_OWNER).resized())
    theirs = await house.client.get(f"/api/v1/images/{image_id}/history", headers={"x-owner": "ben"})
    nobodys = await house.client.get(f"/api/v1/images/{new_image_id()}/history")
    assert refused(theirs, 404, "not-found").detail == refused(nobodys, 404, "not-found").detail


async def test_a_history_is_bounded(house: Archive) -> None:
    """The number of items is limited, whatever the number of reruns, and `cut` reports truncation."""
    image_id = await house.accepted()
    await house.index(*Facts(image_id, owner=DEFAULT_OWNER).all())
    many = {f"{run:016x}": rerun(run) for run in range(1, HISTORY_LIMIT + 50)}
    await merge(house.tools.read_model, image_id, 1, {}, history=many)
    newest = Facts(image_id, owner=DEFAULT_OWNER, run=HISTORY_LIMIT + 60).resized()
    await house.index(newest.model_copy(update={"occurred_at": "2026-03-01T00:00:00.000Z"}))
    entries = await house.tools.read_model.history(image_id)
    assert len(entries) == HISTORY_LIMIT
    found = await house.get(image_id, "history")
    assert found["cut"] is True
    runs = [item.get("run", 0) for item in found["items"] if item["kind"] == "stage"]
    assert runs.count(0) == 5 and max(runs) == HISTORY_LIMIT + 60 and 1 not in runs


def rerun(run: int) -> HistoryEntry:
    """Return an entry of a rerun."""
    at = f"2026-02-01T00:00:00.{run:03d}Z"
    return HistoryEntry(
        event_id=str(run), type="t", generation=1, stage="resizer", state=StageState.DONE, run=run, occurred_at=at,
        recorded_at=at,
    )  # fmt: skip


def test_reruns_are_truncated_first() -> None:
    """First results of each stage are kept longest, then repeated first runs, then the newest reruns."""
    first = {f"f{at}": rerun(at).model_copy(update={"run": 0, "stage": f"s{at}"}) for at in range(3)}
    repeated = {f"r{at}": rerun(at + 10).model_copy(update={"run": 0, "stage": "s0"}) for at in range(HISTORY_LIMIT)}
    reruns = {f"x{at}": rerun(at + 500).model_copy(update={"stage": "s1"}) for at in range(100)}
    kept = shortened(reruns | repeated | first)
    assert len(kept) == HISTORY_LIMIT
    assert first.keys() <= kept.keys()
    assert not reruns.keys() & kept.keys()
    assert repeated.keys() - kept.keys() == {"r0", "r1", "r2"}
