"""The reconciler's pass on a real folder of objects, a real in-process read model and a log in memory."""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agents.maintenance.reconciler import Reconciler, ReconcilerSettings
from agents.stages.indexer import STAGE, IndexerSettings, Tools, index
from schemas.events.envelope import Event, Record, decode
from schemas.events.facts import DeletionRequested, Fact, ImageSanitized
from schemas.events.intake import FetchRequested, ImageUploaded
from schemas.events.outcomes import ImageCompleted
from schemas.http.reconciliation import ReconcileReport, Standing
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ImageState, Lane, ObjectRef, Rendition, job_id_of, new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, receipt_key
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.operations.agent_pauses import Control
from streams.settings import FilesSettings, QdrantSettings, Settings
from streams.stage import Emit, Resources
from streams.telemetry import metrics
from streams.telemetry.health_board import HealthBoard
from streams.testing.memory_log import MemoryLog
from streams.topics import AGENTS, SCHEDULER, retry_topic
from tests.support.facts import Facts, ref

HOUR = 3600.0
KINDS: tuple[type[Event], ...] = (ImageUploaded, FetchRequested, ImageSanitized, DeletionRequested)


@dataclass
class Position:
    """How far agents have come, as a test says."""

    at: dict[str, float] = field(default_factory=dict)

    async def oldest(self, agent: str) -> float | None:
        return self.at.get(agent)


@dataclass
class Place:
    """Everything the reconciler looks at, and the time it thinks it is."""

    files: FileStore
    tools: Tools
    log: MemoryLog = field(default_factory=MemoryLog)
    position: Position = field(default_factory=Position)
    now: float = field(default_factory=time.time)

    def reconciler(self, **settings: object) -> Reconciler:
        """Return one that has just been started."""
        return Reconciler(
            ReconcilerSettings.model_validate(settings),
            files=self.files, read_model=self.tools.read_model, deliverer=self.log, progress=self.position,
            clock=lambda: self.now,
        )  # fmt: skip

    async def accepted(
        self, kind: ReceiptKind = ReceiptKind.UPLOAD, image_id: str | None = None, **more: object
    ) -> Receipt:
        """Write the receipt of a request, as the gateway does."""
        image_id = image_id or new_image_id()
        generation = 2 if kind is ReceiptKind.DELETE else 1
        receipt = Receipt.model_validate({
            "job_id": job_id_of(image_id, generation), "image_id": image_id, "owner": "anna", "kind": kind,
            "generation": generation, "submitted_at": datetime.fromtimestamp(self.now, UTC).isoformat(),
            "original": ref("a") if kind is ReceiptKind.UPLOAD else None,
            "url": "https://photos.example/cat.jpg" if kind is ReceiptKind.FETCH else None, **more,
        })  # fmt: skip
        await self.files.put(
            receipt_key(receipt.job_id), receipt.model_dump_json().encode(), content_type="application/json"
        )
        return receipt

    async def told(self, *facts: Event) -> list[Event]:
        """Have the indexer read facts; return the outcomes it says."""
        said: list[Event] = []
        for fact in facts:
            answer = await index(fact, self.tools)
            if isinstance(answer, Emit):
                said += [event for _, event in answer.events]
        return said

    async def completed(self) -> tuple[str, list[str]]:
        """Return an image that is completed, and the keys of its master and renditions, which are there."""
        image_id = new_image_id()
        facts = Facts(image_id)
        names = ("master.jpg", "thumbnail.webp", "large.webp")
        master, *renditions = [await self.stored(image_id, name) for name in names]
        sanitized = facts.sanitized()
        assert isinstance(sanitized, ImageSanitized)
        sanitized = sanitized.model_copy(update={"image": sanitized.image.model_copy(update={"master": master})})
        sizes = tuple(
            Rendition(name=str(at), object=one, width=1, height=1, aspect_ratio=1, format="webp")
            for at, one in enumerate(renditions)
        )
        resized = facts.resized().model_copy(update={"renditions": sizes})
        others: list[Fact] = [facts.text(), facts.detected(), facts.embedded()]
        assert isinstance((await self.told(sanitized, resized, *others))[-1], ImageCompleted)
        return image_id, [master.key, *(one.key for one in renditions)]

    async def stored(self, image_id: str, name: str) -> ObjectRef:
        return await self.files.put(image_key(image_id, 1, name), b"x", content_type="image/webp")

    def sent(self) -> dict[str, list[Record]]:
        """Return what was sent, by topic."""
        return {topic: self.log.records(topic) for topic in self.log.topics}

    def events(self, agent: str) -> list[Event]:
        """Return the events an agent was sent again, and fail if anybody else was sent any."""
        assert set(self.sent()) <= {retry_topic(agent)}
        return [decode(record, KINDS) for record in self.log.records(retry_topic(agent))]

    async def everything(self) -> dict[str, bytes]:
        return {info.key: await self.files.get(info.key) async for info in self.files.list("")}


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    """Return empty stores."""
    settings = Settings(qdrant=QdrantSettings(path=tmp_path / "qdrant"))
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        STAGE.open(IndexerSettings(), Resources(settings, files, HealthBoard())) as tools,
    ):
        for letter in "cd":  # the master and the thumbnail that Facts speaks of
            await files.put(ref(letter).key, b"x", content_type="image/webp")
        yield Place(files, tools)


def standings(report: ReconcileReport, stage: str) -> dict[Standing, int]:
    return report.unfinished.get(stage, {})


async def test_a_lost_upload_is_found_when_it_is_overdue(place: Place) -> None:
    """An accepted upload nobody spoke of waits at first; overdue, its event goes to the sanitizer alone, once."""
    receipt = await place.accepted()
    reconciler = place.reconciler()
    report = await reconciler.look()
    assert standings(report, "sanitizer") == {Standing.WAITING: 1}
    assert report.overdue_count == 0
    assert place.sent() == {}
    place.now += HOUR + 1
    report = await reconciler.look()
    assert standings(report, "sanitizer") == {Standing.OVERDUE: 1}
    assert report.sent == {"sanitizer": 1}
    assert report.oldest is not None
    assert (report.oldest.image_id, report.oldest.stage) == (receipt.image_id, "sanitizer")
    (event,) = place.events("sanitizer")
    assert isinstance(event, ImageUploaded)
    assert (event.image_id, event.owner, event.original) == (receipt.image_id, "anna", receipt.original)
    await reconciler.look()
    assert len(place.events("sanitizer")) == 1, "it has an hour to take effect"


async def test_a_lost_fetch_goes_back_to_the_fetcher(place: Place) -> None:
    """A fetch nobody spoke of is asked for again, with the source's host as its key."""
    await place.accepted(ReceiptKind.FETCH)
    place.now += HOUR + 1
    await place.reconciler().look()
    (event,) = place.events("fetcher")
    assert isinstance(event, FetchRequested)
    (record,) = place.log.records(retry_topic("fetcher"))
    assert record.key == b"photos.example"


async def test_a_missing_stage_is_told_again_and_completes_the_image(place: Place) -> None:
    """Only the stage that is missing hears of it, and its fact completes the image."""
    receipt = await place.accepted()
    facts = Facts(receipt.image_id)
    assert await place.told(facts.sanitized(), facts.resized(), facts.text(), facts.embedded()) == []
    place.now += HOUR + 60
    report = await place.reconciler().look()
    assert report.unfinished == {"detector": {Standing.OVERDUE: 1}}
    (event,) = place.events("detector")
    assert isinstance(event, ImageSanitized)
    assert event.id == facts.sanitized().id
    assert [type(said) for said in await place.told(facts.detected())] == [ImageCompleted]
    place.now += 2 * HOUR
    report = await place.reconciler().look()
    assert (report.unfinished, report.sent) == ({}, {})
    assert [key for key in await place.everything() if key.startswith("reconciler/")] == []


async def test_an_end_that_was_never_written_is_mended(place: Place) -> None:
    """With every stage there and no end, one stage speaks once more, and its fact ends the image."""
    image_id = new_image_id()
    facts = Facts(image_id).all()
    await place.told(*facts)
    await place.tools.read_model.merge(image_id, 1, {"state": "processing", "finished_by": None})
    place.now += HOUR + 60
    await place.reconciler().look()
    (event,) = place.events("embedder")
    assert event.image_id == image_id
    assert [type(said) for said in await place.told(facts[-1])] == [ImageCompleted]


async def test_what_has_ended_is_left_alone(place: Place) -> None:
    """Completed, refused, failed and deleted images are never led on, however old; dead letters are people's."""
    completed, _ = await place.completed()
    failed, refused, gone = new_image_id(), new_image_id(), await place.accepted()
    facts = Facts(failed)
    await place.told(facts.sanitized(), facts.resized(), facts.text(), facts.embedded(), facts.failed("detector"))
    await place.told(Facts(refused).refused())
    await place.told(DeletionRequested(image_id=gone.image_id, owner="anna", generation=2))
    for image_id in (completed, failed, refused):
        await place.accepted(image_id=image_id)
    place.now += 24 * HOUR
    report = await place.reconciler().look(everything=True)
    assert report.images == {"completed": 1, "failed": 1, "rejected": 1}
    assert (report.unfinished, report.overdue, report.sent) == ({}, (), {})
    assert place.sent() == {}


async def test_a_paused_agent_explains_what_waits_for_it(place: Place) -> None:
    """Nothing is sent to an agent that is paused, and the report says why; resumed, it gets what was lost."""
    await place.accepted()
    control = Control(place.files)
    await control.pause("sanitizer", "a test", by="operator")
    place.now += HOUR + 1
    report = await place.reconciler().look()
    assert standings(report, "sanitizer") == {Standing.PAUSED: 1}
    assert place.sent() == {}
    await control.resume("sanitizer")
    await place.reconciler().look()
    assert len(place.events("sanitizer")) == 1


async def test_an_agent_that_is_behind_explains_what_waits_for_it(place: Place) -> None:
    """What may still be in an agent's topics is not lost; when the agent has come further, what is missing is."""
    began = place.now
    await place.accepted()
    place.now += 3 * HOUR
    place.position.at["sanitizer"] = began
    report = await place.reconciler().look()
    assert standings(report, "sanitizer") == {Standing.QUEUED: 1}
    assert place.sent() == {}
    place.position.at["sanitizer"] = began + HOUR
    report = await place.reconciler().look()
    assert report.sent == {"sanitizer": 1}


async def test_only_bulk_images_wait_for_the_bulk_lane(place: Place) -> None:
    """A long bulk import explains why its images wait, and hides no upload that was lost."""
    bulk, lost = await place.accepted(lane=Lane.BULK), await place.accepted()
    place.position.at[SCHEDULER] = place.now
    place.now += 3 * HOUR
    report = await place.reconciler().look()
    assert {item.image_id: item.standing for item in report.overdue} == {
        bulk.image_id: Standing.QUEUED, lost.image_id: Standing.OVERDUE,
    }  # fmt: skip
    assert [event.image_id for event in place.events("sanitizer")] == [lost.image_id]


async def test_what_has_no_effect_is_stuck_in_the_end(place: Place) -> None:
    """After three tries an hour apart the image is shown as stuck and not told again; a restart forgets nothing."""
    await place.accepted()
    for tries in range(1, 4):
        place.now += HOUR + 1
        await place.reconciler().look()
        assert len(place.events("sanitizer")) == tries
    assert len({record.header("ce_id") for record in place.log.records(retry_topic("sanitizer"))}) == 1
    for _ in range(3):
        place.now += HOUR + 1
        report = await place.reconciler().look()
        assert standings(report, "sanitizer") == {Standing.STUCK: 1}
        assert report.overdue[0].tries == 3
    assert len(place.events("sanitizer")) == 3


async def test_a_stage_nobody_knows_is_stuck_at_once(place: Place) -> None:
    """A profile of another service may name a stage there is not: nothing is sent, and it is seen."""
    image_id = new_image_id()
    await place.told(Facts(image_id, stages=("sanitizer", "painter")).sanitized())
    place.now += HOUR + 60
    report = await place.reconciler().look()
    assert report.unfinished == {"painter": {Standing.STUCK: 1}}
    assert place.sent() == {}


async def test_lost_renditions_are_made_again(place: Place) -> None:
    """Of a completed image without its files only the resizer hears; without its master, the sanitizer, and first."""
    image_id, (master, *renditions) = await place.completed()
    place.now += HOUR + 60
    missed = metrics.MISSING_OBJECTS.labels("resizer")._value.get()
    await place.files.delete(renditions[0])
    report = await place.reconciler().look()
    assert report.missing_objects == (renditions[0],)
    (event,) = place.events("resizer")
    assert isinstance(event, ImageSanitized)
    assert event.image_id == image_id
    assert metrics.MISSING_OBJECTS.labels("resizer")._value.get() == missed + 1
    await place.files.delete(master)
    place.log.topics.clear()
    report = await place.reconciler().look()
    assert report.missing_count == 2
    (again,) = place.events("sanitizer")
    assert isinstance(again, ImageUploaded)
    await place.stored(image_id, "master.jpg")
    await place.stored(image_id, renditions[0].rsplit("/", 1)[-1])
    report = await place.reconciler().look()
    assert (report.missing_count, report.overdue_count) == (0, 0)
    assert [key for key in await place.everything() if key.startswith("reconciler/")] == []


async def test_objects_are_looked_for_a_page_at_a_time(place: Place) -> None:
    """Passes go on where the last one ended and begin anew; a look at everything finds all at once."""
    images = [await place.completed() for _ in range(5)]
    for _, keys in images:
        await place.files.delete(keys[1])
    place.now += HOUR + 60
    dry = await place.reconciler(objects_per_pass=2).look(dry_run=True, everything=True)
    assert dry.missing_count == 5
    reconciler = place.reconciler(objects_per_pass=2)
    for seen in (2, 4, 5):
        await reconciler.look()
        assert len(place.events("resizer")) == seen


async def test_an_accepted_deletion_is_asked_for_again(place: Place) -> None:
    """A deletion Kafka lost reaches the indexer after all; a request that broke off before it was accepted does not."""
    image_id, _ = await place.completed()
    broken, _ = await place.completed()
    await Tombstones(place.files).request(image_id, "anna", 2)
    await Tombstones(place.files).request(broken, "anna", 2)
    await place.accepted(ReceiptKind.DELETE, image_id)
    place.now += HOUR + 60
    report = await place.reconciler().look()
    assert [(item.image_id, item.reason) for item in report.overdue] == [(image_id, "not-deleted")]
    (event,) = place.events("indexer")
    assert (event.image_id, event.generation) == (image_id, 2)
    await place.told(event)
    place.now += 2 * HOUR
    report = await place.reconciler().look()
    assert report.overdue == ()
    assert await place.tools.read_model.count() == {"completed": 1}


async def test_a_late_request_does_not_make_an_image_old(place: Place) -> None:
    """The age of the oldest unfinished is that of its deletion or rerun, not that of an image done long ago."""
    deleted, rerun = [(await place.completed())[0] for _ in range(2)]
    place.now += 72 * HOUR
    await place.accepted(ReceiptKind.DELETE, deleted)
    report = await place.reconciler().look()
    assert report.oldest is not None
    assert (report.oldest.image_id, report.oldest.age_s) == (deleted, pytest.approx(0, abs=60))
    await place.told(DeletionRequested(image_id=deleted, owner="anna", generation=2))
    await place.told(Facts(rerun, generation=2).sanitized())
    record = await place.tools.read_model.get(rerun)
    assert record is not None
    when = datetime.fromtimestamp(place.now - 60, UTC).isoformat()
    await place.tools.read_model.merge(rerun, 2, {"updated_at": when})
    report = await place.reconciler().look()
    assert report.oldest is not None
    assert (report.oldest.image_id, report.oldest.age_s) == (rerun, pytest.approx(60, abs=30))


async def test_a_dry_run_changes_nothing(place: Place) -> None:
    """It says what would be sent and what is missing, and leaves every object, the log and the metrics as they are."""
    receipt = await place.accepted()
    _, keys = await place.completed()
    await place.files.delete(keys[0])
    place.now += HOUR + 60
    before, seen = await place.everything(), metrics.RECONCILED_AT._value.get()
    report = await place.reconciler().look(dry_run=True, everything=True)
    assert report.dry_run
    assert report.complete
    assert report.sent == {"sanitizer": 2}
    assert {item.reason for item in report.overdue if item.sent} == {"no-fact", "object-missing"}
    assert receipt.image_id in {item.image_id for item in report.overdue}
    assert await place.everything() == before
    assert place.sent() == {}
    assert metrics.RECONCILED_AT._value.get() == seen


async def test_a_long_list_is_cut_and_counted(place: Place) -> None:
    """Of very many that are overdue the first are named, those that nothing explains before the others."""
    for _ in range(120):
        await place.accepted(ReceiptKind.FETCH)
    lost = await place.accepted()
    await Control(place.files).pause("fetcher", "a test", by="operator")
    place.now += HOUR + 60
    report = await place.reconciler().look(dry_run=True)
    assert (len(report.overdue), report.overdue_count) == (100, 121)
    assert report.overdue[0].image_id == lost.image_id
    assert standings(report, "fetcher") == {Standing.PAUSED: 120}


async def test_a_pass_sends_so_many_and_the_oldest_first(place: Place) -> None:
    """With more overdue than one pass may send, the images that wait longest go first, the others next time."""
    ids = []
    for _ in range(5):
        ids.append((await place.accepted()).image_id)
        place.now += 60
    place.now += HOUR
    reconciler = place.reconciler(max_per_pass=2)
    for until in (2, 4, 5):
        report = await reconciler.look()
        assert standings(report, "sanitizer") == {Standing.OVERDUE: 5}
        assert {event.image_id for event in place.events("sanitizer")} == set(ids[:until])


async def test_receipts_are_walked_in_parts(place: Place) -> None:
    """However few receipts one pass lists, all come up in turn; older ones than the window do not."""
    ids = [(await place.accepted()).image_id for _ in range(7)]
    place.now += HOUR + 60
    reconciler = place.reconciler(receipts_per_pass=3)
    for _ in range(3):
        await reconciler.look()
    assert {event.image_id for event in place.events("sanitizer")} == set(ids)
    place.now += 7 * 24 * HOUR
    report = await place.reconciler().look()
    assert {item.image_id for item in report.overdue} == set(ids), "what was led on once is not forgotten"
    place.log.topics.clear()
    for image_id in ids:
        await place.files.delete(f"reconciler/{image_id}.json")
    assert (await place.reconciler().look()).overdue == ()


async def test_two_reconcilers_do_no_harm(place: Place) -> None:
    """Two at once may say an event twice, under one id."""
    await place.accepted()
    place.now += HOUR + 1
    for reconciler in (place.reconciler(), place.reconciler()):
        await reconciler.look()
    await place.files.delete(next(key for key in await place.everything() if key.startswith("reconciler/")))
    await place.reconciler().look()
    records = place.log.records(retry_topic("sanitizer"))
    assert len(records) == 2
    assert len({(record.header("ce_id"), record.key) for record in records}) == 1


async def test_a_pass_is_told_in_metrics(place: Place) -> None:
    """Counts per stage and standing, the age of the oldest and the time of the pass can be read."""
    await place.accepted()
    place.now += 2 * HOUR
    await place.accepted()
    await place.reconciler().look()
    assert metrics.UNFINISHED.labels("sanitizer", "overdue")._value.get() == 1
    assert metrics.UNFINISHED.labels("sanitizer", "waiting")._value.get() == 1
    assert metrics.OLDEST_UNFINISHED._value.get() == pytest.approx(2 * HOUR, abs=1)
    assert metrics.RECONCILED_AT._value.get() == pytest.approx(time.time(), abs=60)
    assert {sample.labels["stage"] for sample in metrics.UNFINISHED.collect()[0].samples} == set(AGENTS)


async def test_a_log_that_is_away_is_said(place: Place) -> None:
    """While Kafka is away the pass fails as such, and no try is counted."""
    await place.accepted()
    place.now += HOUR + 1
    place.log.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await place.reconciler().look()
    assert [key for key in await place.everything() if key.startswith("reconciler/")] == []


async def test_any_lost_facts_are_made_good(place: Place) -> None:
    """Whatever facts of many images are lost, following what is sent again completes every image."""
    chance = random.Random(7)
    ids = [(await place.accepted()).image_id for _ in range(12)]
    for image_id in ids:
        facts = Facts(image_id).all()
        await place.told(*chance.sample(facts, chance.randint(0, len(facts) - 1)))
    for _ in range(6):
        place.now += HOUR + 60
        place.log.topics.clear()
        await place.reconciler(objects_per_pass=1).look()
        for agent in AGENTS:
            for record in place.log.records(retry_topic(agent)):
                event = decode(record, KINDS)
                by_stage = {fact.report.stage: fact for fact in Facts(event.image_id).all()}
                follows = list(by_stage.values()) if agent == "sanitizer" else [by_stage[agent]]
                await place.told(*follows)
    for image_id in ids:
        record_ = await place.tools.read_model.get(image_id)
        assert record_ is not None
        assert record_.state is ImageState.COMPLETED
