"""Stored results: the same version never analyses the same bytes twice."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.events.facts import StageFailed
from schemas.events.intake import ImageUploaded
from schemas.stored.results import SanitizedImage
from schemas.values import ErrorCode, ObjectRef, StageReport
from streams import topics
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, image_prefix
from streams.object_store.original_references import claim_prefix
from streams.object_store.protocol import FileStore, delete_prefix
from streams.object_store.results import StoredResult
from streams.settings import FilesSettings
from streams.stage import Announcement, Emit, Once, Resources, Stage, StageSettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import bench, emitted, message, uploaded


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        original = uploaded().original
        await store.put(original.key, b"raw", content_type="image/jpeg", sha256=original.sha256)
        yield store


class Lab:
    """A stage that stores a master and counts its computations."""

    def __init__(self, files: FileStore, *, version: str = "1", quality: int = 85) -> None:
        self.files = files
        self.computed: list[str] = []
        self.reports: list[StageReport] = []
        self.results: list[ObjectRef] = []
        self.stage: Stage[Any, Any, Any] = Stage(
            name="sanitizer",
            version=version,
            consumes=(topics.UPLOADED,),
            emits=(topics.FACTS,),
            settings=StageSettings,
            open=self._open,
            process=self._process,
            once=Once(
                SanitizedImage,
                lambda event: event.original,
                lambda _event, _tools: {"quality": quality},
                self._announce,
                yields=lambda image: image.master,
            ),
        )

    @asynccontextmanager
    async def _open(self, _settings: StageSettings, _resources: Resources) -> AsyncIterator[None]:
        yield None

    async def _process(self, event: ImageUploaded, _tools: None) -> SanitizedImage:
        self.computed.append(event.image_id)
        key = image_key(event.image_id, event.generation, "master.jpg", run=event.run)
        master = await self.files.put(key, b"the master", content_type="image/jpeg")
        return SanitizedImage(
            master=master,
            width=1,
            height=1,
            source_format="jpeg",
            frames=1,
            perceptual_hash="0" * 16,
            dominant_colour="#000000",
            thumbhash="",
        )

    def _announce(self, event: ImageUploaded, image: SanitizedImage, known: Announcement) -> Emit:
        self.reports.append(known.report)
        self.results.append(known.result)
        return emitted(event, note=image.master.key)

    async def run(self, *events: ImageUploaded) -> None:
        """Process events, with a new log per call."""
        log = MemoryLog()
        await log.deliver([message(event) for event in events])
        worker = MemoryWorker(log, "sanitizer", ["image.uploaded"], bench(self.stage, self.files, log).intake)
        await worker.until_idle()
        assert await worker.stop()
        assert log.records("sanitizer.dead") == []


async def test_a_replayed_event_reuses_its_result(files: FileStore) -> None:
    """A replay computes nothing again and emits the same events."""
    lab, event = Lab(files), uploaded()
    await lab.run(event)
    await lab.run(event)
    assert lab.computed == [event.image_id]
    assert [report.reused for report in lab.reports] == [False, True]
    assert [report.result for report in lab.reports] == lab.results
    assert lab.results[0] == lab.results[1]


async def test_equal_bytes_of_another_image_are_adopted_not_analysed(files: FileStore) -> None:
    """A second image with the same bytes gets its own copies of the objects, which survive the first one's deletion."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first)
    await lab.run(second)
    assert lab.computed == [first.image_id]
    await delete_prefix(files, image_prefix(first.image_id))
    assert await files.get(image_key(second.image_id, 1, "master.jpg")) == b"the master"


@pytest.mark.parametrize(
    ("stored", "code"), [(None, ErrorCode.GONE), (b"other bytes", ErrorCode.OBJECT_CHANGED)], ids=["absent", "other"]
)
async def test_a_known_hash_is_no_substitute_for_the_bytes(
    files: FileStore, stored: bytes | None, code: ErrorCode
) -> None:
    """An event with a known hash, but without the bytes at its key, gets no result: its image fails."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first)
    elsewhere = second.original.model_copy(update={"key": "originals/default/aa/elsewhere"})
    if stored is not None:
        await files.put(elsewhere.key, stored, content_type="image/jpeg")
    log = MemoryLog()
    await log.deliver([message(second.model_copy(update={"original": elsewhere}))])
    worker = MemoryWorker(log, "sanitizer", ["image.uploaded"], bench(lab.stage, files, log).intake)
    await worker.until_idle()
    assert await worker.stop()
    (fact,) = log.records("image.facts")
    assert StageFailed.model_validate_json(fact.value or b"").code is code


async def test_each_image_references_its_master(files: FileStore) -> None:
    """An image references its master, computed or adopted, so that deleting a duplicate keeps its results."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first, second)
    master = await files.stat(image_key(first.image_id, 1, "master.jpg"))
    assert master is not None and master.sha256 is not None
    claims = [found.key async for found in files.list(claim_prefix("default", master.sha256))]
    assert [key.rsplit("/", 1)[-1] for key in claims] == [first.image_id, second.image_id]


async def test_a_result_with_missing_objects_is_computed_again(files: FileStore) -> None:
    """A stored result without its objects counts as absent: a replay recreates lost objects."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first)
    await delete_prefix(files, image_prefix(first.image_id))
    await lab.run(second)
    assert lab.computed == [first.image_id, second.image_id]
    await delete_prefix(files, image_prefix(second.image_id))
    await lab.run(second)
    assert await files.get(image_key(second.image_id, 1, "master.jpg")) == b"the master"


async def test_a_rerun_of_the_same_version_computes_nothing(files: FileStore) -> None:
    """Each rerun reuses the stored result, with its own copies of the objects."""
    lab, event = Lab(files), uploaded()
    await lab.run(event)
    for run in (7, 9):
        await lab.run(event.model_copy(update={"run": run}))
        assert await files.get(image_key(event.image_id, 1, "master.jpg", run=run)) == b"the master"
        # The janitor removes the previous run's objects.
        await files.delete(image_key(event.image_id, 1, "master.jpg", run=7 if run == 9 else 0))
    assert lab.computed == [event.image_id]
    assert [report.reused for report in lab.reports] == [False, True, True]


async def test_a_rerun_of_another_version_keeps_the_previous_objects(files: FileStore) -> None:
    """Until its fact is recorded the record names the old objects, so the new ones have other keys."""
    event = uploaded()
    await Lab(files).run(event)
    changed = Lab(files, version="2")
    await changed.run(event.model_copy(update={"run": 7}))
    assert changed.computed == [event.image_id]
    found = [info.key async for info in files.list(image_prefix(event.image_id))]
    assert sorted(found) == [
        image_key(event.image_id, 1, "master.jpg"),
        image_key(event.image_id, 1, "master.jpg", run=7),
    ]


async def test_an_object_overwritten_by_another_version_is_not_reused(files: FileStore) -> None:
    """Other bytes of equal length under the same name do not match the result's reference."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first)
    await files.put(image_key(first.image_id, 1, "master.jpg"), b"not master", content_type="image/jpeg")
    await lab.run(second)
    assert lab.computed == [first.image_id, second.image_id]


@pytest.mark.parametrize("change", [{"version": "2"}, {"quality": 80}])
async def test_a_new_version_or_parameter_is_computed_again(files: FileStore, change: dict[str, Any]) -> None:
    """The key of a result contains everything that changes it."""
    event = uploaded()
    await Lab(files).run(event)
    changed = Lab(files, **change)
    await changed.run(event)
    assert changed.computed == [event.image_id]


async def test_owners_share_nothing(files: FileStore) -> None:
    """Equal bytes of another owner are analysed again, so that no owner learns what another stores."""
    lab, mine, theirs = Lab(files), uploaded(), uploaded(owner="another")
    await lab.run(mine)
    await lab.run(theirs)
    assert lab.computed == [mine.image_id, theirs.image_id]


async def test_a_result_carries_its_lineage(files: FileStore) -> None:
    """Every result contains its inputs, its stage and version, and its time."""
    lab, event = Lab(files, quality=70), uploaded()
    await lab.run(event)
    raw = await files.get(lab.results[0].key)
    assert lab.results[0].sha256 == hashlib.sha256(raw).hexdigest()
    lineage = StoredResult.model_validate_json(raw).lineage
    assert (lineage.input_sha256, lineage.stage, lineage.stage_version) == (event.original.sha256, "sanitizer", "1")
    assert lineage.parameters == {"quality": 70}
    assert lineage.event_id == event.id


async def test_an_unreadable_stored_result_is_computed_again(files: FileStore) -> None:
    """An unreadable stored result is computed again, and its image succeeds."""
    lab, event = Lab(files), uploaded()
    await lab.run(event)
    await files.put(lab.results[0].key, b"{not json", content_type="application/json")
    await lab.run(event)
    assert lab.computed == [event.image_id, event.image_id]
