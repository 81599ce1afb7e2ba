"""Marks of pending deletions are removed once they hide nothing, and not before."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agents.maintenance.ended_deletions import EndedDeletions
from agents.maintenance.janitor import Janitor, JanitorSettings
from agents.stages.indexer import STAGE as INDEXER
from agents.stages.indexer import IndexerSettings, Tools, index
from schemas.events.facts import DeletionRequested
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import job_id_of, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import receipt_key
from streams.object_store.pending_deletions import DELETIONS, KEPT_S, PendingDeletions, mark_key
from streams.object_store.tombstones import Tombstones
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings, Settings
from streams.stage import Resources
from streams.telemetry.health_board import HealthBoard

HOUR = 3600.0


@dataclass
class Marks:
    """The indexer's tools, and the scan of the marks."""

    tools: Tools
    ended: EndedDeletions = field(init=False)

    def __post_init__(self) -> None:
        self.ended = EndedDeletions(self.tools.files, self.tools.read_model)

    async def accepted(self, generation: int = 2) -> str:
        """Accept the deletion of an indexed image, as the gateway does; return its id."""
        image_id = new_image_id()
        await self.tools.read_model.begin(ImageRecord(image_id=image_id, owner="anna", generation=1))
        await Tombstones(self.tools.files).request(image_id, "anna", generation)
        job_id = job_id_of(image_id, generation)
        receipt = Receipt(
            job_id=job_id, image_id=image_id, owner="anna", generation=generation, kind=ReceiptKind.DELETE,
            submitted_at="2026-01-01T00:00:00Z",
        )  # fmt: skip
        body = receipt.model_dump_json().encode()
        await self.tools.files.put(receipt_key(job_id), body, content_type="application/json")
        await PendingDeletions(self.tools.files).add("anna", image_id, generation)
        return image_id

    async def remove(self, after_s: float, *, dry_run: bool = False) -> int:
        """Remove the ended marks that long from now."""
        return await self.ended.remove(now=time.time() + after_s, horizon_s=HOUR, page_size=100, dry_run=dry_run)

    async def left(self) -> set[str]:
        """Return the keys of all marks."""
        return {info.key async for info in self.tools.files.list(DELETIONS)}


@pytest.fixture
async def marks(tmp_path: Path) -> AsyncIterator[Marks]:
    """Yield the indexer's tools, opened as the runtime opens them."""
    settings = Settings(qdrant=QdrantSettings(path=tmp_path / "qdrant"))
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        INDEXER.open(IndexerSettings(), Resources(settings, files, HealthBoard())) as tools,
    ):
        yield Marks(tools)


async def test_a_mark_outlives_its_image(marks: Marks) -> None:
    """A mark is kept while its deletion waits, and for KEPT_S after it is done; a dry run removes nothing."""
    image_id = await marks.accepted()
    assert await marks.remove(1000 * HOUR) == 0
    await index(DeletionRequested(image_id=image_id, owner="anna", generation=2), marks.tools)
    assert await marks.remove(KEPT_S - 5) == 0
    assert await marks.left() == {mark_key("anna", image_id)}
    assert await marks.remove(KEPT_S + 5, dry_run=True) == 1
    assert await marks.left()
    assert await marks.remove(KEPT_S + 5) == 1
    assert await marks.left() == set()


async def test_the_mark_of_a_superseded_deletion_is_removed(marks: Marks) -> None:
    """Once the read model has a later generation than the deleted one, the mark hides nothing."""
    image_id = await marks.accepted()
    await marks.tools.read_model.begin(ImageRecord(image_id=image_id, owner="anna", generation=3))
    assert await marks.remove(KEPT_S + 5) == 1
    assert await marks.left() == set()


async def test_the_mark_of_a_withdrawn_deletion_is_removed(marks: Marks) -> None:
    """A mark without tombstone and receipt, left by a gateway killed while withdrawing, is kept for the horizon."""
    image_id = await marks.accepted()
    await marks.tools.files.delete(receipt_key(job_id_of(image_id, 2)))
    await Tombstones(marks.tools.files).cancel(image_id, 2)
    assert await marks.remove(HOUR - 60) == 0
    assert await marks.remove(HOUR + 60) == 1


async def test_a_mark_with_only_a_receipt_stays(marks: Marks) -> None:
    """The reconciler resends a deletion whose receipt exists: its mark stays."""
    image_id = await marks.accepted()
    await Tombstones(marks.tools.files).cancel(image_id, 2)
    assert await marks.remove(1000 * HOUR) == 0


async def test_the_janitor_removes_marks(marks: Marks) -> None:
    """A sweep removes ended marks, reports their number, and tolerates other objects in the folder."""
    image_id = await marks.accepted()
    await marks.tools.files.put(f"{DELETIONS}anna/else", b"", content_type="text/plain")
    await index(DeletionRequested(image_id=image_id, owner="anna", generation=2), marks.tools)
    janitor = Janitor(
        marks.tools.files, marks.tools.read_model, JanitorSettings(), clock=lambda: time.time() + KEPT_S + 5
    )
    assert (await janitor.sweep()).ended_deletions == 1
    assert await marks.left() == {f"{DELETIONS}anna/else"}
