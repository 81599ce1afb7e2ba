"""Lineage: each part of an image's results names its input, code, weights and parameters, or the reason without."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from schemas.stored.receipts import ReceiptKind
from schemas.values import DEFAULT_OWNER, new_image_id
from tests.support.archive import Archive, archive, reported
from tests.support.facts import WHEN, Facts, ref
from tests.support.gateway_components import refused

KNOWN = {
    "state": "known", "stage_state": "done", "reused": False, "input_sha256": "c" * 64, "stage_version": "1",
    "code_version": "abc", "models": [{"name": "m", "sha256": "f" * 64, "backend": "torch"}],
    "parameters": {"quality": 7}, "parameters_hash": "p", "computed_at": WHEN, "duration_ms": 3, "event_id": "e",
    "trace_id": "t",
}  # fmt: skip


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[Archive]:
    """A gateway and the indexer's tools."""
    async with archive(tmp_path) as house:
        yield house


async def origin(house: Archive, image_id: str, stage: str) -> dict[str, Any]:
    """Return the origin of one stage's result."""
    found: dict[str, Any] = (await house.get(image_id, "lineage"))["origins"][stage]
    return found


async def test_every_part_names_its_origin(house: Archive) -> None:
    """Master, variants, text, objects and vector name their stage, and the stage has its lineage."""
    image_id = await house.accepted()
    facts = Facts(image_id, owner=DEFAULT_OWNER)
    for fact in [facts.sanitized(), facts.resized(), facts.detected("person", "bus"), facts.embedded(), facts.text()]:
        source = "a" * 64 if fact.report.stage == "sanitizer" else "c" * 64
        result = await house.stored(fact.report.stage, input_sha256=source)
        reported_fact = reported(fact, result=result)
        await house.index(
            reported_fact.model_copy(update={"result": result}) if fact.report.stage == "ocr" else reported_fact
        )
    found = await house.get(image_id, "lineage")
    assert found["original_sha256"] == "a" * 64
    assert [(item["kind"], item["name"], item["stage"]) for item in found["items"]] == [
        ("master", "master", "sanitizer"), ("variant", "thumbnail", "resizer"), ("text", "text", "ocr"),
        ("object", "person", "detector"), ("object", "bus", "detector"), ("vector", "clip", "embedder"),
    ]  # fmt: skip
    assert found["origins"] == {
        "sanitizer": {**KNOWN, "input_sha256": "a" * 64},
        **dict.fromkeys(("resizer", "ocr", "detector", "embedder"), KNOWN),
    }


async def test_a_skipped_stage_has_a_reason(house: Archive) -> None:
    """A skipped stage has no lineage, and its reason."""
    image_id = await house.accepted()
    await house.index(Facts(image_id, owner=DEFAULT_OWNER).skipped("ocr"))
    assert await origin(house, image_id, "ocr") == {
        "state": "not-made", "detail": "no weights", "stage_state": "skipped", "reused": False, "models": [],
        "parameters": {}, "stage_version": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("body", "state"), [(None, "missing"), (b"not json", "unreadable"), (b'{"result": 1}', "unreadable")]
)
async def test_a_missing_or_invalid_result_affects_only_its_stage(
    house: Archive, body: bytes | None, state: str
) -> None:
    """A missing or damaged result is reported for its stage only."""
    image_id = await house.accepted()
    facts = Facts(image_id, owner=DEFAULT_OWNER)
    lost, kept = await house.stored("resizer"), await house.stored("detector")
    if body is None:
        await house.tools.files.delete(lost.key)
    else:
        await house.tools.files.put(lost.key, body, content_type="application/json")
    await house.index(reported(facts.resized(), result=lost), reported(facts.detected("cat"), result=kept))
    assert (await origin(house, image_id, "resizer"))["state"] == state
    assert (await origin(house, image_id, "detector")) == KNOWN


async def test_only_the_owners_results_are_read(house: Archive) -> None:
    """An event that names another owner's object, or one that is no result, exposes nothing."""
    for key in ("results/ben/x.json", "originals/default/aa/a", f"results/{DEFAULT_OWNER}x/y.json"):
        image_id = await house.accepted()
        stored = await house.stored("resizer")
        await house.tools.files.put(key, await house.tools.files.get(stored.key), content_type="application/json")
        fact = reported(Facts(image_id, owner=DEFAULT_OWNER).resized(), result=ref("a", key))
        await house.index(fact)
        assert (await origin(house, image_id, "resizer"))["state"] == "missing"


async def test_a_record_without_result_keys_uses_the_only_result(house: Archive) -> None:
    """For a record without result keys a single stored result is used, and none of several."""
    image_id = await house.accepted()
    facts = Facts(image_id, owner=DEFAULT_OWNER)
    await house.index(facts.sanitized(), facts.resized())
    await house.stored("resizer")
    assert await origin(house, image_id, "resizer") == KNOWN
    await house.stored("resizer", "q")
    assert (await origin(house, image_id, "resizer"))["state"] == "missing"


async def test_lineage_has_the_same_visibility_as_results(house: Archive) -> None:
    """Not before the image is indexed, not after its deletion, and never for another owner."""
    image_id = await house.accepted()
    path = f"/api/v1/images/{image_id}/lineage"
    refused(await house.client.get(path), 409, "not-finished")
    await house.index(Facts(image_id, owner=DEFAULT_OWNER).resized())
    refused(await house.client.get(path, headers={"x-owner": "ben"}), 404, "not-found")
    refused(await house.client.get(f"/api/v1/images/{new_image_id()}/lineage"), 404, "not-found")
    await house.accepted(ReceiptKind.DELETE, image_id, 2)
    refused(await house.client.get(path), 410, "gone")
