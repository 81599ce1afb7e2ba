"""Positions of the janitor's and the reconciler's scans survive a restart."""

from __future__ import annotations

import pytest

from agents.maintenance import inventory
from agents.maintenance.inventory import Inventory, InventorySettings
from agents.maintenance.janitor import Janitor, JanitorSettings
from agents.maintenance.stored_positions import StoredPositions
from agents.stages.indexer import Tools
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import made_at, new_image_id
from streams.object_store.keys import image_key, receipt_key
from streams.object_store.protocol import FileStore
from tests.support.facts import ref


async def accepted(files: FileStore) -> str:
    """Write the receipt of an upload."""
    image = new_image_id()
    receipt = Receipt(
        job_id=f"{image}.1", image_id=image, owner="anna", generation=1, kind=ReceiptKind.UPLOAD,
        submitted_at="2026-01-01T00:00:00Z", original=ref("a"),
    )  # fmt: skip
    await files.put(receipt_key(receipt.job_id), receipt.model_dump_json().encode(), content_type="application/json")
    return image


async def test_a_restarted_janitor_continues_its_scan(tools: Tools) -> None:
    """Each sweep of a fresh process examines the next page, and after the last one nothing remains stored."""
    files = tools.files
    for _ in range(5):
        await files.put(image_key(new_image_id(), 1, "master.png"), b"x", content_type="x/y")
    examined = []
    for _ in range(3):
        janitor = Janitor(files, tools.read_model, JanitorSettings(objects_per_sweep=2))
        assert (await janitor.sweep(dry_run=True)).looked_at == (await janitor.sweep()).looked_at
        examined.append(janitor._objects.position)
    keys = [found.key async for found in files.list("images/")]
    assert examined == [keys[1], keys[3], None]
    assert [found.key async for found in files.list("maintenance/")] == []


async def test_a_restarted_reconciler_continues_its_listing(tools: Tools) -> None:
    """Each pass of a fresh process lists the next receipts; a pass over everything changes no position."""
    files = tools.files
    images = sorted([await accepted(files) for _ in range(5)])
    seen: list[list[str]] = []
    for _ in range(3):
        listing = Inventory(files, tools.read_model, InventorySettings(receipts_per_pass=2))
        await listing.resume()
        now = made_at(images[-1])
        assert len([found async for found in listing.unfinished(now, everything=True)]) == 5
        seen.append([found.image_id async for found in listing.unfinished(now, everything=False)])
        await listing.store_positions()
    assert seen == [images[:2], images[2:4], images[4:]]


async def test_unreadable_positions_begin_again(tools: Tools) -> None:
    """A damaged object is logged and replaced, and an unchanged position is not written."""
    files = tools.files
    await files.put("maintenance/janitor.json", b"[1, 2", content_type="application/json")
    positions = StoredPositions(files, "janitor")
    assert await positions.load() == {}
    assert await positions.load() is None
    await positions.store({"images/": "images/aa", "claims/": None})
    written = await files.stat("maintenance/janitor.json")
    await positions.store({"images/": "images/aa"})
    assert await files.stat("maintenance/janitor.json") == written
    assert await StoredPositions(files, "janitor").load() == {"images/": "images/aa"}


async def test_a_full_cache_keeps_what_it_has_and_forgets_what_left_the_window(
    tools: Tools, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More jobs than fit do not empty the cache: those in it cost no read, until their images leave the window."""
    monkeypatch.setattr(inventory, "CACHED", 3)
    now = made_at(max([await accepted(tools.files) for _ in range(5)]))
    listing = Inventory(tools.files, tools.read_model, InventorySettings(window_s=1000))
    cached = []
    for _ in range(2):
        assert len([found async for found in listing.unfinished(now, everything=True)]) == 5
        cached.append(set(listing._unfinished_jobs))
    assert cached[0] == cached[1]
    assert len(cached[0]) == 3
    assert [found async for found in listing.unfinished(now + 2000, everything=True)] == []
    assert not listing._unfinished_jobs
