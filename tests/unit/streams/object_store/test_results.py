"""Compute once: the same bytes are never analysed twice by the same version."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from schemas.events.intake import ImageUploaded
from schemas.stored.results import SanitizedImage
from schemas.values import ObjectRef, StageReport
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
        yield store


class Lab:
    """A stage that stores a master and counts how often it truly worked."""

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
        """Work on events, one log for each call."""
        log = MemoryLog()
        await log.deliver([message(event) for event in events])
        worker = MemoryWorker(log, "sanitizer", ["image.uploaded"], bench(self.stage, self.files, log).intake)
        await worker.until_idle()
        assert await worker.stop()
        assert log.records("sanitizer.dead") == []


async def test_a_replayed_event_is_answered_without_work(files: FileStore) -> None:
    """The log can be replayed as a whole: nothing is computed again, and the answer is the same."""
    lab, event = Lab(files), uploaded()
    await lab.run(event)
    await lab.run(event)
    assert lab.computed == [event.image_id]
    assert [report.reused for report in lab.reports] == [False, True]
    assert [report.result for report in lab.reports] == lab.results
    assert lab.results[0] == lab.results[1]


async def test_equal_bytes_of_another_image_are_adopted_not_analysed(files: FileStore) -> None:
    """A second image of the same bytes gets objects of its own, copied, and survives the first one's deletion."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first)
    await lab.run(second)
    assert lab.computed == [first.image_id]
    await delete_prefix(files, image_prefix(first.image_id))
    assert await files.get(image_key(second.image_id, 1, "master.jpg")) == b"the master"


async def test_each_image_claims_the_master_it_stands_on(files: FileStore) -> None:
    """Whether the master was made or adopted, its image claims it: a twin's deletion must not take its results."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first, second)
    master = await files.stat(image_key(first.image_id, 1, "master.jpg"))
    assert master is not None and master.sha256 is not None
    claims = [found.key async for found in files.list(claim_prefix("default", master.sha256))]
    assert [key.rsplit("/", 1)[-1] for key in claims] == [first.image_id, second.image_id]


async def test_a_result_whose_objects_are_gone_is_computed_again(files: FileStore) -> None:
    """A stored result is worth nothing without its objects: a replay repairs what was lost."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first)
    await delete_prefix(files, image_prefix(first.image_id))
    await lab.run(second)
    assert lab.computed == [first.image_id, second.image_id]
    await delete_prefix(files, image_prefix(second.image_id))
    await lab.run(second)
    assert await files.get(image_key(second.image_id, 1, "master.jpg")) == b"the master"


async def test_a_rerun_of_the_same_version_computes_nothing(files: FileStore) -> None:
    """Asked for again and again, a stage takes its result each time, in objects of that run's own."""
    lab, event = Lab(files), uploaded()
    await lab.run(event)
    for run in (7, 9):
        await lab.run(event.model_copy(update={"run": run}))
        assert await files.get(image_key(event.image_id, 1, "master.jpg", run=run)) == b"the master"
        # What the run before left is the janitor's.
        await files.delete(image_key(event.image_id, 1, "master.jpg", run=7 if run == 9 else 0))
    assert lab.computed == [event.image_id]
    assert [report.reused for report in lab.reports] == [False, True, True]


async def test_a_rerun_of_another_version_leaves_the_objects_before_it_alone(files: FileStore) -> None:
    """Until its fact is recorded the record names the old objects, so the new ones lie elsewhere."""
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


async def test_an_object_overwritten_by_another_version_is_not_taken_for_the_result(files: FileStore) -> None:
    """Bytes of equal length under the same name do not pass for the ones the result speaks of."""
    lab, first, second = Lab(files), uploaded(), uploaded()
    await lab.run(first)
    await files.put(image_key(first.image_id, 1, "master.jpg"), b"not master", content_type="image/jpeg")
    await lab.run(second)
    assert lab.computed == [first.image_id, second.image_id]


@pytest.mark.parametrize("change", [{"version": "2"}, {"quality": 80}])
async def test_a_new_version_or_parameter_computes_anew(files: FileStore, change: dict[str, Any]) -> None:
    """What changes the result changes its name."""
    event = uploaded()
    await Lab(files).run(event)
    changed = Lab(files, **change)
    await changed.run(event)
    assert changed.computed == [event.image_id]


async def test_owners_share_nothing(files: FileStore) -> None:
    """Equal bytes of another owner are analysed again: nobody learns what another has."""
    lab, mine, theirs = Lab(files), uploaded(), uploaded(owner="somebody-else")
    await lab.run(mine)
    await lab.run(theirs)
    assert lab.computed == [mine.image_id, theirs.image_id]


async def test_a_result_carries_its_lineage(files: FileStore) -> None:
    """Every result says what it was made of, by what, and when."""
    lab, event = Lab(files, quality=70), uploaded()
    await lab.run(event)
    raw = await files.get(lab.results[0].key)
    assert lab.results[0].sha256 == hashlib.sha256(raw).hexdigest()
    lineage = StoredResult.model_validate_json(raw).lineage
    assert (lineage.input_sha256, lineage.stage, lineage.stage_version) == (event.original.sha256, "sanitizer", "1")
    assert lineage.parameters == {"quality": 70}
    assert lineage.event_id == event.id


async def test_an_unreadable_stored_result_is_computed_again(files: FileStore) -> None:
    """Rubbish where a result should be costs one computation, not an image."""
    lab, event = Lab(files), uploaded()
    await lab.run(event)
    await files.put(lab.results[0].key, b"{not json", content_type="application/json")
    await lab.run(event)
    assert lab.computed == [event.image_id, event.image_id]
