"""The janitor removes late objects, keeps shared ones and finishes erasures."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from pydantic import JsonValue

from agents.maintenance.janitor import Janitor, JanitorSettings
from agents.stages.indexer import STAGE as INDEXER
from agents.stages.indexer import IndexerSettings, Tools, index
from schemas.events.facts import DeletionRequested, ImageResized
from schemas.events.outcomes import ImageDeleted
from schemas.stored.erasures import Erasure, ErasureState, Removed
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ErrorCode, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, image_prefix, original_key, receipt_key, result_key
from streams.object_store.original_references import add_reference, release
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.settings import FilesSettings, QdrantSettings, Settings
from streams.stage import Emit, Resources, Skip
from streams.telemetry.health_board import HealthBoard
from tests.support.facts import Facts, ref
from tests.support.read_models import merge

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass
class FakeDeadLetters:
    """Dead letters of some images; records which were closed."""

    counts: Mapping[str, int] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    async def erase(self, image_ids: Collection[str]) -> Mapping[str, int]:
        self.closed |= set(image_ids)
        return {image_id: count for image_id, count in self.counts.items() if image_id in image_ids}


@dataclass
class Stores:
    """A file store in a folder, an in-process read model, and a clock that can be advanced."""

    tools: Tools
    ahead_s: float = 0.0

    @property
    def files(self) -> FileStore:
        return self.tools.files

    @property
    def erasures(self) -> Tombstones:
        return Tombstones(self.tools.files)

    def janitor(self, letters: FakeDeadLetters | None = None, **settings: object) -> Janitor:
        return Janitor(
            self.files,
            self.tools.read_model,
            JanitorSettings.model_validate(settings),
            letters=letters,
            clock=lambda: time.time() + self.ahead_s,
        )

    async def put(self, *keys: str) -> None:
        for key in keys:
            await self.files.put(key, b"x", content_type="x/y")

    async def image(self, *, sha: str = "a", owner: str = "anna") -> str:
        """Store and index an image up to its master."""
        image = new_image_id()
        await add_reference(self.files, owner, sha * 64, image)
        receipt = Receipt(
            job_id=f"{image}.1", image_id=image, owner=owner, generation=1, kind=ReceiptKind.UPLOAD,
            submitted_at="2026-01-01T00:00:00Z", original=ref(sha),
        )  # fmt: skip
        await self.files.put(receipt_key(receipt.job_id), receipt.model_dump_json().encode(), content_type="x/y")
        await self.put(original_key(owner, sha * 64), result_key(owner, sha * 64, "sanitizer", "1", "p"))
        await self.put(result_key(owner, "c" * 64, "ocr", "1", "p"), image_key(image, 1, "master.png"))
        await index(Facts(image, owner=owner).sanitized(original=ref(sha)), self.tools)
        return image

    async def delete(self, image: str, *, owner: str = "anna") -> None:
        await index(DeletionRequested(image_id=image, owner=owner, generation=2), self.tools)

    async def erasure(self, image: str) -> Erasure:
        found = await self.erasures.get(image)
        assert found is not None
        return found

    async def keys(self) -> set[str]:
        """Return all keys except those of erasures."""
        found = {info.key async for info in self.files.list("")}
        return {key for key in found if not key.startswith("erasures/")}


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    """Yield the indexer's tools, opened as the runtime opens them."""
    settings = Settings(qdrant=QdrantSettings(path=tmp_path / "qdrant"))
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        INDEXER.open(IndexerSettings(), Resources(settings, files, HealthBoard())) as tools,
    ):
        yield Stores(tools)


async def test_an_erasure_says_what_was_removed(stores: Stores) -> None:
    """An erasure's receipt counts removed items by kind, has its times, and contains no hash and no name."""
    image = await stores.image()
    await stores.delete(image)
    erasure = await stores.erasure(image)
    assert erasure.state is ErasureState.ERASED
    assert erasure.removed == Removed(objects=1, originals=1, results=2, receipts=1)
    assert erasure.requested_at <= (erasure.erased_at or "") < erasure.leaves_log_by
    text = erasure.model_dump_json()
    assert not [word for word in ("me.jpg", "a" * 64, "c" * 64, "trip") if word in text]


async def test_an_interrupted_erasure_counts_each_item_once(stores: Stores) -> None:
    """Counts of a first attempt are kept, and the second attempt does not add them again."""
    image = await stores.image()
    erasure = await stores.erasures.make_certain(image, "anna", 2)
    assert erasure is not None
    await stores.erasures.update(erasure, removed=Removed(objects=3, results=1))
    await stores.delete(image)
    assert (await stores.erasure(image)).removed == Removed(objects=3, originals=1, results=2, receipts=1)


async def test_another_owners_erasure_is_never_touched(stores: Stores) -> None:
    """Another owner's deletion of an erased image changes nothing and emits no event."""
    image = await stores.image()
    await stores.delete(image)
    before = await stores.erasure(image)
    answer = await index(DeletionRequested(image_id=image, owner="bert", generation=9), stores.tools)
    assert isinstance(answer, Skip)
    assert not await stores.erasures.request(image, "bert", 9)
    assert await stores.erasure(image) == before


async def test_an_erasure_never_reverts(stores: Stores) -> None:
    """A repeated request of an equal or lower generation changes nothing; revoking keeps a certain erasure."""
    image = await stores.image()
    await stores.delete(image)
    before = await stores.erasure(image)
    for generation in (1, 2):
        assert not await stores.erasures.request(image, "anna", generation)
    await stores.erasures.cancel(image, 2)
    assert await stores.erasure(image) == before


async def test_before_the_horizon_nothing_is_finished(stores: Stores) -> None:
    """As long as a worker may still write for a deleted image, its erasure waits and its tombstone is kept."""
    image = await stores.image()
    await stores.delete(image)
    stores.ahead_s = HOUR - 60
    report = await stores.janitor().sweep()
    assert (report.waiting, report.finished) == (1, 0)
    record = await stores.tools.read_model.get(image)
    assert record is not None
    assert record.deleted


async def test_after_the_horizon_late_objects_are_removed_and_the_erasure_finished(stores: Stores) -> None:
    """Late objects, results, originals and receipts are removed, the tombstone is purged, the receipt stays."""
    image = await stores.image()
    await stores.delete(image)
    await stores.put(image_key(image, 1, "thumbnail.webp"), result_key("anna", "a" * 64, "sanitizer", "1", "p"))
    await stores.put(original_key("anna", "a" * 64), result_key("anna", "c" * 64, "ocr", "1", "p"))
    await stores.put(receipt_key(f"{image}.1"), result_key("anna", "e" * 64, "ocr", "1", "p"))
    await add_reference(stores.files, "anna", "a" * 64, image)
    await stores.erasures.note(image, {"e" * 64})  # as the tombstone check does
    stores.ahead_s = HOUR + 60
    drawer = FakeDeadLetters({image: 2})
    report = await stores.janitor(drawer).sweep()
    assert (report.finished, report.late) == (1, Removed(objects=1, originals=1, results=3, receipts=1))
    assert await stores.keys() == set()
    assert await stores.tools.read_model.get(image) is None
    erasure = await stores.erasure(image)
    assert erasure.state is ErasureState.FINISHED
    assert erasure.removed == Removed(objects=2, originals=2, results=5, receipts=2, dead_letters=2)
    assert drawer.closed == {image}
    assert (await stores.janitor(drawer).sweep()).finished == 0


async def test_an_original_another_image_uses_stays(stores: Stores) -> None:
    """An original of another image of the owner stays, whether the read model or only a reference names that image."""
    image, twin = await stores.image(), await stores.image()
    await stores.delete(image)
    shared = {key for key in await stores.keys() if key.startswith(("originals/", "results/"))}
    assert len(shared) == 3
    stores.ahead_s = HOUR + 60
    assert (await stores.janitor().sweep()).late == Removed()
    assert shared <= await stores.keys()
    newcomer = new_image_id()
    for sha256 in ("a" * 64, "c" * 64):  # accepted and sanitized, not yet in the read model
        await add_reference(stores.files, "anna", sha256, newcomer)
    await stores.delete(twin)
    stores.ahead_s += HOUR + 60
    await stores.janitor().sweep()
    assert shared <= await stores.keys()


async def test_an_original_noted_while_an_erasure_finishes_is_removed(stores: Stores) -> None:
    """Bytes that a worker notes while the erasure finishes are removed by the next sweep."""
    image = await stores.image()
    await stores.delete(image)
    stores.ahead_s = HOUR + 60
    late, real, erasures = result_key("anna", "e" * 64, "ocr", "1", "p"), stores.tools.read_model.purge, stores.erasures

    class Purging:
        """A read model during whose purge the worker notes what it stored."""

        def __getattr__(self, name: str) -> object:
            return getattr(stores.tools.read_model, name)

        async def purge(self, image_id: str, generation: int) -> None:
            await stores.put(late)
            await erasures.note(image_id, {"e" * 64})
            await real(image_id, generation)

    first = Janitor(
        stores.files,
        Purging(),  # type: ignore[arg-type]
        JanitorSettings(),
        clock=lambda: time.time() + stores.ahead_s,
    )
    assert (await first.sweep()).finished == 1
    assert late in await stores.keys()
    assert (await stores.janitor().sweep()).late == Removed(results=1)
    assert await stores.keys() == set()


async def test_facts_and_deletions_of_a_finished_erasure_change_nothing(stores: Stores) -> None:
    """Once the tombstone is purged a replayed fact revives nothing, a repeated deletion only repeats its outcome."""
    image = await stores.image()
    await stores.delete(image)
    stores.ahead_s = HOUR + 60
    await stores.janitor().sweep()
    for fact in Facts(image).all():
        answer = await index(fact, stores.tools)
        assert isinstance(answer, Skip)
        assert answer.code is ErrorCode.SUPERSEDED
    answer = await index(DeletionRequested(image_id=image, owner="anna", generation=2), stores.tools)
    assert isinstance(answer, Emit)
    assert [type(event) for _, event in answer.events] == [ImageDeleted]
    assert await stores.tools.read_model.get(image) is None
    assert await stores.keys() == set()


async def test_a_dry_run_changes_nothing(stores: Stores) -> None:
    """A dry run counts what a sweep would do, twice the same, and changes no key or record."""
    image, stranger, _ = await stores.image(), new_image_id(), await stores.image(sha="b")
    await stores.delete(image)
    await stores.put(image_key(image, 1, "late.webp"), image_key(stranger, 1, "x.webp"))
    stores.ahead_s = 100 * DAY
    before, drawer = await stores.keys(), FakeDeadLetters()
    reports = [await stores.janitor(drawer).sweep(dry_run=True) for _ in range(2)]
    assert reports[0] == reports[1]
    assert (reports[0].finished, reports[0].late.objects, reports[0].orphans_removed) == (1, 2, 1)
    assert await stores.keys() == before
    assert (await stores.erasure(image)).state is ErasureState.ERASED
    assert not drawer.closed


async def test_an_object_written_after_a_finished_erasure_is_removed(stores: Stores) -> None:
    """The scan finds and removes an object written for an image whose erasure finished long ago."""
    image = await stores.image()
    await stores.delete(image)
    stores.ahead_s = HOUR + 60
    await stores.janitor().sweep()
    late = image_key(image, 1, "medium.webp")
    await stores.put(late)
    assert late in await stores.keys()
    report = await stores.janitor().sweep()
    assert report.late == Removed(objects=1)
    assert late not in await stores.keys()


async def test_objects_of_an_older_generation_are_removed_after_the_horizon(stores: Stores) -> None:
    """Objects of a superseded run are removed after the horizon; those of the newer one stay."""
    image = await stores.image()
    await index(Facts(image, generation=2).sanitized(), stores.tools)
    old, new = image_key(image, 1, "master.png"), image_key(image, 2, "master.png")
    await stores.put(new)
    assert (await stores.janitor().sweep()).outdated == 0
    stores.ahead_s = HOUR + 60
    assert (await stores.janitor().sweep()).outdated == 1
    keys = await stores.keys()
    assert new in keys
    assert old not in keys


async def test_objects_of_earlier_runs_are_removed(stores: Stores) -> None:
    """Once a rerun is recorded, objects of earlier runs are removed after the horizon; named or newer ones stay."""
    image = await stores.image()
    first = Facts(image).resized()
    assert isinstance(first, ImageResized)

    def resized(run: int) -> ImageResized:
        (rendition,) = first.renditions
        kept = ref("d", image_key(image, 1, "thumbnail.webp", run=run))
        renditions = (rendition.model_copy(update={"object": kept}),)
        return first.model_copy(update={"run": run, "renditions": renditions})

    written = {run: image_key(image, 1, "thumbnail.webp", run=run) for run in (0, 5, 7, 9)}
    master = ref("c", image_key(image, 1, "master.png"))
    await stores.put(*written.values(), master.key)
    await merge(stores.tools.read_model, image, 1, {"master": master.model_dump(mode="json")})
    await index(resized(0), stores.tools)
    stores.ahead_s = 2 * HOUR
    assert (await stores.janitor().sweep()).outdated == 0
    await index(resized(7), stores.tools)
    assert (await stores.janitor(horizon_s=3 * HOUR).sweep()).outdated == 0
    assert (await stores.janitor().sweep()).outdated == 2
    left = {info.key async for info in stores.files.list(image_prefix(image))}
    assert left == {master.key, written[7], written[9]}


async def test_the_pages_of_a_document_stay(stores: Stores) -> None:
    """A page that the record names stays, whatever run stored it; a page of an earlier run goes."""
    image = await stores.image()
    kept = [image_key(image, 1, name, run=4) for name in ("master.png", "page-2.png")]
    old = image_key(image, 1, "page-2.png")
    await stores.put(*kept, old)
    master, page = (ref("c", key).model_dump(mode="json") for key in kept)
    pages: JsonValue = [{"number": 2, "object": page, "width": 1, "height": 1}]
    await index(Facts(image).sanitized(), stores.tools)
    await merge(stores.tools.read_model, image, 1, {"master": master, "pages": pages})
    record = await stores.tools.read_model.get(image)
    assert record is not None
    assert [ref.key for ref in record.sanitized()] == kept
    stores.ahead_s = 2 * HOUR
    await stores.janitor().sweep()
    left = {info.key async for info in stores.files.list(image_prefix(image))}
    assert left >= set(kept)
    assert old not in left


async def test_orphans_are_reported_early_and_removed_late(stores: Stores) -> None:
    """Objects without an image are reported after the horizon and removed once no retained event can name them."""
    await stores.image()
    waiting = await stores.image(sha="b")  # no record, but a receipt: not an orphan
    await stores.tools.read_model.write_tombstone(waiting, "anna", 1)
    await stores.tools.read_model.purge(waiting, 1)
    orphan = image_key(new_image_id(), 1, "x.webp")
    await stores.put(orphan)
    for days, orphans, removed in ((0, 0, 0), (1, 1, 0), (60, 1, 1), (61, 0, 0)):
        stores.ahead_s = days * DAY
        report = await stores.janitor().sweep()
        assert (report.orphans, report.orphans_removed) == (orphans, removed), days
    assert image_prefix(waiting) in "".join(await stores.keys())


async def test_orphaned_references_of_a_crashed_gateway_are_removed(stores: Stores) -> None:
    """An old reference without an image is removed, with its original if it was the last; those of images stay."""
    known = await stores.image(sha="a")
    await release(stores.files, "anna", "a" * 64, known)  # as of a service that adds no reference
    await stores.image(sha="d")
    lost, shared = "b" * 64, "d" * 64
    await add_reference(stores.files, "anna", lost, new_image_id())
    await add_reference(stores.files, "anna", shared, new_image_id())
    await stores.put(original_key("anna", lost), original_key("anna", "e" * 64))
    before = await stores.keys()
    assert (await stores.janitor().sweep()).abandoned == 0
    assert await stores.keys() == before
    stores.ahead_s = 60 * DAY
    assert (await stores.janitor().sweep(dry_run=True)).abandoned == 3
    assert (await stores.janitor().sweep()).abandoned == 3
    after = await stores.keys()
    originals = {key for key in after if key.startswith("originals/")}
    assert originals == {original_key("anna", "a" * 64), original_key("anna", shared)}
    assert len([key for key in after if key.startswith("claims/")]) == 1


async def test_a_reference_added_after_the_erasure_is_removed_with_its_original(stores: Stores) -> None:
    """The reference of a worker that crashed before it saw the tombstone is removed and keeps no result."""
    image = await stores.image()
    await stores.delete(image)
    stores.ahead_s = HOUR + 60
    await stores.janitor().sweep()
    late = "9" * 64
    await add_reference(stores.files, "anna", late, image)
    await stores.put(f"results/anna/{late}/ocr/1/p.json")
    assert (await stores.janitor(remove_orphans=False).sweep(dry_run=True)).abandoned == 1
    assert (await stores.janitor(remove_orphans=False).sweep()).abandoned == 1
    report = await stores.janitor().sweep()
    assert (report.late.results, report.abandoned) == (1, 0)
    assert not [key for key in await stores.keys() if late in key]


async def test_orphans_stay_where_that_is_the_setting(stores: Stores) -> None:
    """With remove_orphans off, orphans are only reported."""
    await stores.image()
    orphan = image_key(new_image_id(), 1, "x.webp")
    await stores.put(orphan)
    stores.ahead_s = 60 * DAY
    report = await stores.janitor(remove_orphans=False).sweep()
    assert (report.orphans, report.orphans_removed) == (1, 0)
    assert orphan in await stores.keys()


async def test_an_empty_read_model_causes_no_removal(stores: Stores) -> None:
    """With more orphaned than known images, the read model is probably wrong: nothing is removed."""
    await stores.image()
    strangers = [image_key(new_image_id(), 1, "x.webp") for _ in range(2)]
    await stores.put(*strangers)
    stores.ahead_s = 60 * DAY
    report = await stores.janitor().sweep()
    assert (report.orphans, report.orphans_removed) == (2, 0)
    assert set(strangers) <= await stores.keys()


async def test_the_scan_continues_where_it_stopped(stores: Stores) -> None:
    """Each sweep examines one page, continues after it, starts over at the end, and skips nothing."""
    images = [await stores.image() for _ in range(5)]
    for image in images:
        await index(Facts(image, generation=2).sanitized(), stores.tools)
    stores.ahead_s = HOUR + 60
    janitor = stores.janitor(objects_per_sweep=2)
    reports = [await janitor.sweep() for _ in range(4)]
    assert [report.looked_at for report in reports] == [2, 2, 1, 0]
    assert sum(report.outdated for report in reports) == 5


async def test_an_unaccepted_deletion_is_revoked(stores: Stores) -> None:
    """A deletion that was never accepted leaves no trace after the horizon; an accepted one is reported."""
    broken, accepted = await stores.image(), await stores.image(sha="b")
    assert await stores.erasures.request(broken, "anna", 2)
    assert await stores.erasures.request(accepted, "anna", 2)
    receipt = Receipt(
        job_id=f"{accepted}.2", image_id=accepted, owner="anna", generation=2, kind=ReceiptKind.DELETE,
        submitted_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    await stores.files.put(receipt_key(receipt.job_id), receipt.model_dump_json().encode(), content_type="x/y")
    await stores.put(f"erasing/{new_image_id()}/open")
    assert (await stores.janitor().sweep()).taken_back == 0
    stores.ahead_s = HOUR + 60
    report = await stores.janitor().sweep()
    assert (report.taken_back, report.overdue) == (1, 1)
    assert await stores.erasures.get(broken) is None
    assert (await stores.erasure(accepted)).state is ErasureState.REQUESTED
    assert [image async for image in stores.erasures.unfinished()] == [accepted]
