"""The janitor: what came late goes, what others use stays, and an erasure comes to its end."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

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

HOUR = 3600.0
DAY = 24 * HOUR


@dataclass
class Drawer:
    """Dead letters of some images, of which it is noted when they are closed."""

    counts: Mapping[str, int] = field(default_factory=dict)
    closed: set[str] = field(default_factory=set)

    async def erase(self, image_ids: Collection[str]) -> Mapping[str, int]:
        self.closed |= set(image_ids)
        return {image_id: count for image_id, count in self.counts.items() if image_id in image_ids}


@dataclass
class House:
    """A real folder of objects, a real in-process read model, and a clock that can be put forward."""

    tools: Tools
    ahead_s: float = 0.0

    @property
    def files(self) -> FileStore:
        return self.tools.files

    @property
    def erasures(self) -> Tombstones:
        return Tombstones(self.tools.files)

    def janitor(self, letters: Drawer | None = None, **settings: object) -> Janitor:
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
        """Store and index an image as far as its master."""
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
        """Return what is stored beside the erasures."""
        found = {info.key async for info in self.files.list("")}
        return {key for key in found if not key.startswith("erasures/")}


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """The indexer's tools, opened as the runtime opens them."""
    settings = Settings(qdrant=QdrantSettings(path=tmp_path / "qdrant"))
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        INDEXER.open(IndexerSettings(), Resources(settings, files, HealthBoard())) as tools,
    ):
        yield House(tools)


async def test_an_erasure_says_what_was_removed(house: House) -> None:
    """The receipt of a deletion counts what went by kind, knows its times, and holds no hash and no name."""
    image = await house.image()
    await house.delete(image)
    erasure = await house.erasure(image)
    assert erasure.state is ErasureState.ERASED
    assert erasure.removed == Removed(objects=1, originals=1, results=2, receipts=1)
    assert erasure.requested_at <= (erasure.erased_at or "") < erasure.leaves_log_by
    text = erasure.model_dump_json()
    assert not [word for word in ("me.jpg", "a" * 64, "c" * 64, "trip") if word in text]


async def test_an_interrupted_erasure_counts_nothing_twice_and_forgets_nothing(house: House) -> None:
    """What a first attempt had counted stays counted, and what the second one finds is not added again."""
    image = await house.image()
    erasure = await house.erasures.make_certain(image, "anna", 2)
    assert erasure is not None
    await house.erasures.say(erasure, removed=Removed(objects=3, results=1))
    await house.delete(image)
    assert (await house.erasure(image)).removed == Removed(objects=3, originals=1, results=2, receipts=1)


async def test_another_owners_erasure_is_never_touched(house: House) -> None:
    """A deletion by somebody else, of an image that is erased already, changes nothing and says nothing."""
    image = await house.image()
    await house.delete(image)
    before = await house.erasure(image)
    answer = await index(DeletionRequested(image_id=image, owner="bert", generation=9), house.tools)
    assert isinstance(answer, Skip)
    assert not await house.erasures.request(image, "bert", 9)
    assert await house.erasure(image) == before


async def test_an_erasure_never_goes_back(house: House) -> None:
    """Asking again, with the same generation or a lower one, changes nothing; taking back leaves what is certain."""
    image = await house.image()
    await house.delete(image)
    before = await house.erasure(image)
    for generation in (1, 2):
        assert not await house.erasures.request(image, "anna", generation)
    await house.erasures.take_back(image, 2)
    assert await house.erasure(image) == before


async def test_before_the_horizon_nothing_is_finished(house: House) -> None:
    """As long as a worker may still write for a deleted image, its erasure waits, and a tombstone is kept."""
    image = await house.image()
    await house.delete(image)
    house.ahead_s = HOUR - 60
    report = await house.janitor().sweep()
    assert (report.waiting, report.finished) == (1, 0)
    record = await house.tools.read_model.get(image)
    assert record is not None
    assert record.deleted


async def test_after_the_horizon_what_came_late_goes_and_the_erasure_is_finished(house: House) -> None:
    """Late objects, results, originals and receipts go, the tombstone leaves the read model, the receipt stays."""
    image = await house.image()
    await house.delete(image)
    await house.put(image_key(image, 1, "thumbnail.webp"), result_key("anna", "a" * 64, "sanitizer", "1", "p"))
    await house.put(original_key("anna", "a" * 64), result_key("anna", "c" * 64, "ocr", "1", "p"))
    await house.put(receipt_key(f"{image}.1"), result_key("anna", "e" * 64, "ocr", "1", "p"))
    await add_reference(house.files, "anna", "a" * 64, image)
    await house.erasures.note(image, {"e" * 64})  # as the fence does
    house.ahead_s = HOUR + 60
    drawer = Drawer({image: 2})
    report = await house.janitor(drawer).sweep()
    assert (report.finished, report.late) == (1, Removed(objects=1, originals=1, results=3, receipts=1))
    assert await house.keys() == set()
    assert await house.tools.read_model.get(image) is None
    erasure = await house.erasure(image)
    assert erasure.state is ErasureState.FINISHED
    assert erasure.removed == Removed(objects=2, originals=2, results=5, receipts=2, dead_letters=2)
    assert drawer.closed == {image}
    assert (await house.janitor(drawer).sweep()).finished == 0


async def test_bytes_another_image_has_stay(house: House) -> None:
    """What another image of the owner stands on stays, whether the read model knows that image or only its claim."""
    image, twin = await house.image(), await house.image()
    await house.delete(image)
    shared = {key for key in await house.keys() if key.startswith(("originals/", "results/"))}
    assert len(shared) == 3
    house.ahead_s = HOUR + 60
    assert (await house.janitor().sweep()).late == Removed()
    assert shared <= await house.keys()
    newcomer = new_image_id()
    for sha256 in ("a" * 64, "c" * 64):  # accepted and sanitized, and the read model has not heard of it yet
        await add_reference(house.files, "anna", sha256, newcomer)
    await house.delete(twin)
    house.ahead_s += HOUR + 60
    await house.janitor().sweep()
    assert shared <= await house.keys()


async def test_what_is_noted_while_an_erasure_is_finished_is_seen_to(house: House) -> None:
    """A worker that notes its bytes at the very moment of the end has them removed by the next sweep."""
    image = await house.image()
    await house.delete(image)
    house.ahead_s = HOUR + 60
    late, real, erasures = result_key("anna", "e" * 64, "ocr", "1", "p"), house.tools.read_model.purge, house.erasures

    class Purging:
        """A read model at whose purge the worker notes what it stored."""

        def __getattr__(self, name: str) -> object:
            return getattr(house.tools.read_model, name)

        async def purge(self, image_id: str, generation: int) -> None:
            await house.put(late)
            await erasures.note(image_id, {"e" * 64})
            await real(image_id, generation)

    first = Janitor(
        house.files,
        Purging(),  # type: ignore[arg-type]
        JanitorSettings(),
        clock=lambda: time.time() + house.ahead_s,
    )
    assert (await first.sweep()).finished == 1
    assert late in await house.keys()
    assert (await house.janitor().sweep()).late == Removed(results=1)
    assert await house.keys() == set()


async def test_facts_and_deletions_of_a_finished_erasure_change_nothing(house: House) -> None:
    """With the tombstone gone from the read model, a replayed fact revives nothing; a deletion is only said again."""
    image = await house.image()
    await house.delete(image)
    house.ahead_s = HOUR + 60
    await house.janitor().sweep()
    for fact in Facts(image).all():
        answer = await index(fact, house.tools)
        assert isinstance(answer, Skip)
        assert answer.code is ErrorCode.SUPERSEDED
    said = await index(DeletionRequested(image_id=image, owner="anna", generation=2), house.tools)
    assert isinstance(said, Emit)
    assert [type(event) for _, event in said.events] == [ImageDeleted]
    assert await house.tools.read_model.get(image) is None
    assert await house.keys() == set()


async def test_a_dry_run_changes_nothing(house: House) -> None:
    """A dry run counts what a sweep would do, twice the same, and leaves every key and record as it was."""
    image, stranger, _ = await house.image(), new_image_id(), await house.image(sha="b")
    await house.delete(image)
    await house.put(image_key(image, 1, "late.webp"), image_key(stranger, 1, "x.webp"))
    house.ahead_s = 100 * DAY
    before, drawer = await house.keys(), Drawer()
    reports = [await house.janitor(drawer).sweep(dry_run=True) for _ in range(2)]
    assert reports[0] == reports[1]
    assert (reports[0].finished, reports[0].late.objects, reports[0].orphans_removed) == (1, 2, 1)
    assert await house.keys() == before
    assert (await house.erasure(image)).state is ErasureState.ERASED
    assert not drawer.closed


async def test_a_zombies_object_is_found_long_after_the_end(house: House) -> None:
    """An object written for an image whose erasure was finished long ago is found by the walk and removed."""
    image = await house.image()
    await house.delete(image)
    house.ahead_s = HOUR + 60
    await house.janitor().sweep()
    late = image_key(image, 1, "medium.webp")
    await house.put(late)
    assert late in await house.keys()
    report = await house.janitor().sweep()
    assert report.late == Removed(objects=1)
    assert late not in await house.keys()


async def test_objects_of_an_older_generation_go_when_nobody_writes_them_any_more(house: House) -> None:
    """Of a run that another has taken over, the objects go after the horizon, and those of the newer one stay."""
    image = await house.image()
    await index(Facts(image, generation=2).sanitized(), house.tools)
    old, new = image_key(image, 1, "master.png"), image_key(image, 2, "master.png")
    await house.put(new)
    assert (await house.janitor().sweep()).outdated == 0
    house.ahead_s = HOUR + 60
    assert (await house.janitor().sweep()).outdated == 1
    keys = await house.keys()
    assert new in keys
    assert old not in keys


async def test_objects_of_a_run_before_the_newest_one_go(house: House) -> None:
    """When a rerun is recorded, what the runs before it wrote goes in time; what is named, or newer, stays."""
    image = await house.image()
    first = Facts(image).resized()
    assert isinstance(first, ImageResized)

    def resized(run: int) -> ImageResized:
        (rendition,) = first.renditions
        kept = ref("d", image_key(image, 1, "thumbnail.webp", run=run))
        renditions = (rendition.model_copy(update={"object": kept}),)
        return first.model_copy(update={"run": run, "renditions": renditions})

    written = {run: image_key(image, 1, "thumbnail.webp", run=run) for run in (0, 5, 7, 9)}
    master = ref("c", image_key(image, 1, "master.png"))
    await house.put(*written.values(), master.key)
    await house.tools.read_model.merge(image, 1, {"master": master.model_dump(mode="json")})
    await index(resized(0), house.tools)
    house.ahead_s = 2 * HOUR
    assert (await house.janitor().sweep()).outdated == 0
    await index(resized(7), house.tools)
    assert (await house.janitor(horizon_s=3 * HOUR).sweep()).outdated == 0
    assert (await house.janitor().sweep()).outdated == 2
    left = {info.key async for info in house.files.list(image_prefix(image))}
    assert left == {master.key, written[7], written[9]}


async def test_orphans_are_reported_early_and_removed_late(house: House) -> None:
    """Objects of no image are reported after the horizon, and removed only when no event can speak of them any more."""
    await house.image()
    waiting = await house.image(sha="b")  # no record, but a receipt: not an orphan
    await house.tools.read_model.bury(waiting, "anna", 1)
    await house.tools.read_model.purge(waiting, 1)
    orphan = image_key(new_image_id(), 1, "x.webp")
    await house.put(orphan)
    for days, orphans, removed in ((0, 0, 0), (1, 1, 0), (60, 1, 1), (61, 0, 0)):
        house.ahead_s = days * DAY
        report = await house.janitor().sweep()
        assert (report.orphans, report.orphans_removed) == (orphans, removed), days
    assert image_prefix(waiting) in "".join(await house.keys())


async def test_what_a_dead_gateway_left_goes_when_it_is_old(house: House) -> None:
    """A claim no image stands behind is taken back, with its original if it was the last; what images have stays."""
    known = await house.image(sha="a")
    await release(house.files, "anna", "a" * 64, known)  # as of a service that claims nothing
    await house.image(sha="d")
    lost, shared = "b" * 64, "d" * 64
    await add_reference(house.files, "anna", lost, new_image_id())
    await add_reference(house.files, "anna", shared, new_image_id())
    await house.put(original_key("anna", lost), original_key("anna", "e" * 64))
    before = await house.keys()
    assert (await house.janitor().sweep()).abandoned == 0
    assert await house.keys() == before
    house.ahead_s = 60 * DAY
    assert (await house.janitor().sweep(dry_run=True)).abandoned == 3
    assert (await house.janitor().sweep()).abandoned == 3
    after = await house.keys()
    originals = {key for key in after if key.startswith("originals/")}
    assert originals == {original_key("anna", "a" * 64), original_key("anna", shared)}
    assert len([key for key in after if key.startswith("claims/")]) == 1


async def test_a_claim_made_after_the_end_goes_with_what_it_held(house: House) -> None:
    """A worker that died between its claim and its look at the tombstone leaves a claim, which keeps no result."""
    image = await house.image()
    await house.delete(image)
    house.ahead_s = HOUR + 60
    await house.janitor().sweep()
    late = "9" * 64
    await add_reference(house.files, "anna", late, image)
    await house.put(f"results/anna/{late}/ocr/1/p.json")
    assert (await house.janitor(remove_orphans=False).sweep(dry_run=True)).abandoned == 1
    assert (await house.janitor(remove_orphans=False).sweep()).abandoned == 1
    report = await house.janitor().sweep()
    assert (report.late.results, report.abandoned) == (1, 0)
    assert not [key for key in await house.keys() if late in key]


async def test_orphans_stay_where_that_is_the_setting(house: House) -> None:
    """An operator can have orphans reported only."""
    await house.image()
    orphan = image_key(new_image_id(), 1, "x.webp")
    await house.put(orphan)
    house.ahead_s = 60 * DAY
    report = await house.janitor(remove_orphans=False).sweep()
    assert (report.orphans, report.orphans_removed) == (1, 0)
    assert orphan in await house.keys()


async def test_a_read_model_that_knows_nothing_costs_no_object(house: House) -> None:
    """When most objects belong to no image, the read model is the wrong one: nothing is removed."""
    await house.image()
    strangers = [image_key(new_image_id(), 1, "x.webp") for _ in range(2)]
    await house.put(*strangers)
    house.ahead_s = 60 * DAY
    report = await house.janitor().sweep()
    assert (report.orphans, report.orphans_removed) == (2, 0)
    assert set(strangers) <= await house.keys()


async def test_the_walk_goes_on_where_it_stopped(house: House) -> None:
    """Sweeps look at one page each, go on after it, begin anew at the end, and leave out nothing."""
    images = [await house.image() for _ in range(5)]
    for image in images:
        await index(Facts(image, generation=2).sanitized(), house.tools)
    house.ahead_s = HOUR + 60
    janitor = house.janitor(objects_per_sweep=2)
    reports = [await janitor.sweep() for _ in range(4)]
    assert [report.looked_at for report in reports] == [2, 2, 1, 0]
    assert sum(report.outdated for report in reports) == 5


async def test_a_request_that_broke_off_is_taken_back(house: House) -> None:
    """A deletion that was never accepted leaves no trace after the horizon; one that was accepted is reported."""
    broken, accepted = await house.image(), await house.image(sha="b")
    assert await house.erasures.request(broken, "anna", 2)
    assert await house.erasures.request(accepted, "anna", 2)
    receipt = Receipt(
        job_id=f"{accepted}.2", image_id=accepted, owner="anna", generation=2, kind=ReceiptKind.DELETE,
        submitted_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    await house.files.put(receipt_key(receipt.job_id), receipt.model_dump_json().encode(), content_type="x/y")
    await house.put(f"erasing/{new_image_id()}/open")
    assert (await house.janitor().sweep()).taken_back == 0
    house.ahead_s = HOUR + 60
    report = await house.janitor().sweep()
    assert (report.taken_back, report.overdue) == (1, 1)
    assert await house.erasures.get(broken) is None
    assert (await house.erasure(accepted)).state is ErasureState.REQUESTED
    assert [image async for image in house.erasures.unfinished()] == [accepted]
