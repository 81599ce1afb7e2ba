"""The reconciler's pass on a file store in a folder, an in-process read model and an in-memory log."""

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
from tests.support.read_models import merge

HOUR = 3600.0
KINDS: tuple[type[Event], ...] = (ImageUploaded, FetchRequested, ImageSanitized, DeletionRequested)


@dataclass
class Position:
    """Consumer progress set by a test."""

    at: dict[str, float] = field(default_factory=dict)

    async def oldest(self, agent: str) -> float | None:
        return self.at.get(agent)


@dataclass
class Stores:
    """The reconciler's stores, log and clock."""

    files: FileStore
    tools: Tools
    log: MemoryLog = field(default_factory=MemoryLog)
    position: Position = field(default_factory=Position)
    now: float = field(default_factory=time.time)

    def reconciler(self, **settings: object) -> Reconciler:
        """Return a newly started reconciler."""
        return Reconciler(
            ReconcilerSettings.model_validate(settings),
            files=self.files, read_model=self.tools.read_model, deliverer=self.log, progress=self.position,
            clock=lambda: self.now,
        )  # fmt: skip

    async def accepted(
        self, kind: ReceiptKind = ReceiptKind.UPLOAD, image_id: str | None = None, **more: object
    ) -> Receipt:
        """Write the receipt of a request as the gateway does."""
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

    async def indexed(self, *facts: Event) -> list[Event]:
        """Let the indexer read facts; return the outcomes it emits."""
        outcomes: list[Event] = []
        for fact in facts:
            answer = await index(fact, self.tools)
            if isinstance(answer, Emit):
                outcomes += [event for _, event in answer.events]
        return outcomes

    async def completed(self) -> tuple[str, list[str]]:
        """Return a completed image and the keys of its master and renditions, all stored."""
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
        assert isinstance((await self.indexed(sanitized, resized, *others))[-1], ImageCompleted)
        return image_id, [master.key, *(one.key for one in renditions)]

    async def stored(self, image_id: str, name: str) -> ObjectRef:
        return await self.files.put(image_key(image_id, 1, name), b"x", content_type="image/webp")

    def sent(self) -> dict[str, list[Record]]:
        """Return the sent messages by topic."""
        return {topic: self.log.records(topic) for topic in self.log.topics}

    def events(self, agent: str) -> list[Event]:
        """Return the events resent to an agent; fail if another agent got any."""
        assert set(self.sent()) <= {retry_topic(agent)}
        return [decode(record, KINDS) for record in self.log.records(retry_topic(agent))]

    async def everything(self) -> dict[str, bytes]:
        return {info.key: await self.files.get(info.key) async for info in self.files.list("")}


@pytest.fixture
async def stores(tmp_path: Path) -> AsyncIterator[Stores]:
    """Yield empty stores."""
    settings = Settings(qdrant=QdrantSettings(path=tmp_path / "qdrant"))
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        STAGE.open(IndexerSettings(), Resources(settings, files, HealthBoard())) as tools,
    ):
        for letter in "cd":  # the master and the thumbnail that Facts names
            await files.put(ref(letter).key, b"x", content_type="image/webp")
        yield Stores(files, tools)


def standings(report: ReconcileReport, stage: str) -> dict[Standing, int]:
    return report.unfinished.get(stage, {})


async def test_a_lost_upload_is_resent_when_overdue(stores: Stores) -> None:
    """An accepted upload without facts waits at first; overdue, its event is sent once, to the sanitizer only."""
    receipt = await stores.accepted()
    reconciler = stores.reconciler()
    report = await reconciler.look()
    assert standings(report, "sanitizer") == {Standing.WAITING: 1}
    assert report.overdue_count == 0
    assert stores.sent() == {}
    stores.now += HOUR + 1
    report = await reconciler.look()
    assert standings(report, "sanitizer") == {Standing.OVERDUE: 1}
    assert report.sent == {"sanitizer": 1}
    assert report.oldest is not None
    assert (report.oldest.image_id, report.oldest.stage) == (receipt.image_id, "sanitizer")
    (event,) = stores.events("sanitizer")
    assert isinstance(event, ImageUploaded)
    assert (event.image_id, event.owner, event.original) == (receipt.image_id, "anna", receipt.original)
    await reconciler.look()
    assert len(stores.events("sanitizer")) == 1, "it has an hour to take effect"


async def test_a_lost_fetch_is_resent_to_the_fetcher(stores: Stores) -> None:
    """A fetch without facts is sent again, keyed by the source's host."""
    await stores.accepted(ReceiptKind.FETCH)
    stores.now += HOUR + 1
    await stores.reconciler().look()
    (event,) = stores.events("fetcher")
    assert isinstance(event, FetchRequested)
    (record,) = stores.log.records(retry_topic("fetcher"))
    assert record.key == b"photos.example"


async def test_a_missing_stage_gets_its_event_and_completes_the_image(stores: Stores) -> None:
    """Only the missing stage gets the event, and its fact completes the image."""
    receipt = await stores.accepted()
    facts = Facts(receipt.image_id)
    assert await stores.indexed(facts.sanitized(), facts.resized(), facts.text(), facts.embedded()) == []
    stores.now += HOUR + 60
    report = await stores.reconciler().look()
    assert report.unfinished == {"detector": {Standing.OVERDUE: 1}}
    (event,) = stores.events("detector")
    assert isinstance(event, ImageSanitized)
    assert event.id == facts.sanitized().id
    assert [type(outcome) for outcome in await stores.indexed(facts.detected())] == [ImageCompleted]
    stores.now += 2 * HOUR
    report = await stores.reconciler().look()
    assert (report.unfinished, report.sent) == ({}, {})
    assert [key for key in await stores.everything() if key.startswith("reconciler/")] == []


async def test_a_missing_outcome_is_repaired(stores: Stores) -> None:
    """With every stage ended and no outcome, one stage emits its fact again, which ends the image."""
    image_id = new_image_id()
    facts = Facts(image_id).all()
    await stores.indexed(*facts)
    await merge(stores.tools.read_model, image_id, 1, {"state": "processing", "finished_by": None})
    stores.now += HOUR + 60
    await stores.reconciler().look()
    (event,) = stores.events("embedder")
    assert event.image_id == image_id
    assert [type(outcome) for outcome in await stores.indexed(facts[-1])] == [ImageCompleted]


async def test_ended_images_are_skipped(stores: Stores) -> None:
    """Completed, rejected, failed and deleted images get no event, however old."""
    completed, _ = await stores.completed()
    failed, refused, gone = new_image_id(), new_image_id(), await stores.accepted()
    facts = Facts(failed)
    await stores.indexed(facts.sanitized(), facts.resized(), facts.text(), facts.embedded(), facts.failed("detector"))
    await stores.indexed(Facts(refused).refused())
    await stores.indexed(DeletionRequested(image_id=gone.image_id, owner="anna", generation=2))
    for image_id in (completed, failed, refused):
        await stores.accepted(image_id=image_id)
    stores.now += 24 * HOUR
    report = await stores.reconciler().look(everything=True)
    assert report.images == {"completed": 1, "failed": 1, "rejected": 1}
    assert (report.unfinished, report.overdue, report.sent) == ({}, (), {})
    assert stores.sent() == {}


async def test_a_paused_agent_explains_its_overdue_images(stores: Stores) -> None:
    """A paused agent gets no event, and the report gives the reason; once resumed, it gets the lost ones."""
    await stores.accepted()
    control = Control(stores.files)
    await control.pause("sanitizer", "a test", by="operator")
    stores.now += HOUR + 1
    report = await stores.reconciler().look()
    assert standings(report, "sanitizer") == {Standing.PAUSED: 1}
    assert stores.sent() == {}
    await control.resume("sanitizer")
    await stores.reconciler().look()
    assert len(stores.events("sanitizer")) == 1


async def test_an_agents_backlog_explains_its_overdue_images(stores: Stores) -> None:
    """An event that may still be in the agent's topics is not lost; once the agent is past it, it is resent."""
    began = stores.now
    await stores.accepted()
    stores.now += 3 * HOUR
    stores.position.at["sanitizer"] = began
    report = await stores.reconciler().look()
    assert standings(report, "sanitizer") == {Standing.QUEUED: 1}
    assert stores.sent() == {}
    stores.position.at["sanitizer"] = began + HOUR
    report = await stores.reconciler().look()
    assert report.sent == {"sanitizer": 1}


async def test_only_bulk_images_wait_for_the_bulk_lane(stores: Stores) -> None:
    """A long bulk import explains why its images wait, and does not hide a lost upload."""
    bulk, lost = await stores.accepted(lane=Lane.BULK), await stores.accepted()
    stores.position.at[SCHEDULER] = stores.now
    stores.now += 3 * HOUR
    report = await stores.reconciler().look()
    assert {item.image_id: item.standing for item in report.overdue} == {
        bulk.image_id: Standing.QUEUED, lost.image_id: Standing.OVERDUE,
    }  # fmt: skip
    assert [event.image_id for event in stores.events("sanitizer")] == [lost.image_id]


async def test_an_image_is_stuck_after_three_tries(stores: Stores) -> None:
    """After three tries an hour apart the image is reported as stuck and not resent; a restart keeps the count."""
    await stores.accepted()
    for tries in range(1, 4):
        stores.now += HOUR + 1
        await stores.reconciler().look()
        assert len(stores.events("sanitizer")) == tries
    assert len({record.header("ce_id") for record in stores.log.records(retry_topic("sanitizer"))}) == 1
    for _ in range(3):
        stores.now += HOUR + 1
        report = await stores.reconciler().look()
        assert standings(report, "sanitizer") == {Standing.STUCK: 1}
        assert report.overdue[0].tries == 3
    assert len(stores.events("sanitizer")) == 3


async def test_an_unknown_stage_is_stuck_at_once(stores: Stores) -> None:
    """A profile of another service may name an unknown stage: nothing is sent, and the image is reported."""
    image_id = new_image_id()
    await stores.indexed(Facts(image_id, stages=("sanitizer", "painter")).sanitized())
    stores.now += HOUR + 60
    report = await stores.reconciler().look()
    assert report.unfinished == {"painter": {Standing.STUCK: 1}}
    assert stores.sent() == {}


async def test_lost_renditions_are_made_again(stores: Stores) -> None:
    """Missing renditions are sent to the resizer only; a missing master to the sanitizer, first."""
    image_id, (master, *renditions) = await stores.completed()
    stores.now += HOUR + 60
    missed = metrics.MISSING_OBJECTS.labels("resizer")._value.get()
    await stores.files.delete(renditions[0])
    report = await stores.reconciler().look()
    assert report.missing_objects == (renditions[0],)
    (event,) = stores.events("resizer")
    assert isinstance(event, ImageSanitized)
    assert event.image_id == image_id
    assert metrics.MISSING_OBJECTS.labels("resizer")._value.get() == missed + 1
    await stores.files.delete(master)
    stores.log.topics.clear()
    report = await stores.reconciler().look()
    assert report.missing_count == 2
    (again,) = stores.events("sanitizer")
    assert isinstance(again, ImageUploaded)
    await stores.stored(image_id, "master.jpg")
    await stores.stored(image_id, renditions[0].rsplit("/", 1)[-1])
    report = await stores.reconciler().look()
    assert (report.missing_count, report.overdue_count) == (0, 0)
    assert [key for key in await stores.everything() if key.startswith("reconciler/")] == []


async def test_objects_are_checked_page_by_page(stores: Stores) -> None:
    """Passes continue where the last one ended and start over at the end; a full pass finds everything at once."""
    images = [await stores.completed() for _ in range(5)]
    for _, keys in images:
        await stores.files.delete(keys[1])
    stores.now += HOUR + 60
    dry = await stores.reconciler(objects_per_pass=2).look(dry_run=True, everything=True)
    assert dry.missing_count == 5
    reconciler = stores.reconciler(objects_per_pass=2)
    for seen in (2, 4, 5):
        await reconciler.look()
        assert len(stores.events("resizer")) == seen


async def test_an_accepted_deletion_is_sent_again(stores: Stores) -> None:
    """A deletion lost by Kafka reaches the indexer; one that failed before it was accepted does not."""
    image_id, _ = await stores.completed()
    broken, _ = await stores.completed()
    await Tombstones(stores.files).request(image_id, "anna", 2)
    await Tombstones(stores.files).request(broken, "anna", 2)
    await stores.accepted(ReceiptKind.DELETE, image_id)
    stores.now += HOUR + 60
    report = await stores.reconciler().look()
    assert [(item.image_id, item.reason) for item in report.overdue] == [(image_id, "not-deleted")]
    (event,) = stores.events("indexer")
    assert (event.image_id, event.generation) == (image_id, 2)
    await stores.indexed(event)
    stores.now += 2 * HOUR
    report = await stores.reconciler().look()
    assert report.overdue == ()
    assert await stores.tools.read_model.count() == {"completed": 1}


async def test_a_late_request_does_not_make_an_image_old(stores: Stores) -> None:
    """The age of the oldest unfinished image is that of its deletion or rerun, not of the image."""
    deleted, rerun = [(await stores.completed())[0] for _ in range(2)]
    stores.now += 72 * HOUR
    await stores.accepted(ReceiptKind.DELETE, deleted)
    report = await stores.reconciler().look()
    assert report.oldest is not None
    assert report.oldest.image_id == deleted
    assert report.oldest.age_s == pytest.approx(0, abs=60)
    await stores.indexed(DeletionRequested(image_id=deleted, owner="anna", generation=2))
    await stores.indexed(Facts(rerun, generation=2).sanitized())
    record = await stores.tools.read_model.get(rerun)
    assert record is not None
    when = datetime.fromtimestamp(stores.now - 60, UTC).isoformat()
    await merge(stores.tools.read_model, rerun, 2, {"updated_at": when})
    report = await stores.reconciler().look()
    assert report.oldest is not None
    assert report.oldest.image_id == rerun
    assert report.oldest.age_s == pytest.approx(60, abs=30)


async def test_a_dry_run_changes_nothing(stores: Stores) -> None:
    """A dry run reports what it would send and what is missing, and changes no object, log or metric."""
    receipt = await stores.accepted()
    _, keys = await stores.completed()
    await stores.files.delete(keys[0])
    stores.now += HOUR + 60
    before, seen = await stores.everything(), metrics.RECONCILED_AT._value.get()
    report = await stores.reconciler().look(dry_run=True, everything=True)
    assert report.dry_run
    assert report.complete
    assert report.sent == {"sanitizer": 2}
    assert {item.reason for item in report.overdue if item.sent} == {"no-fact", "object-missing"}
    assert receipt.image_id in {item.image_id for item in report.overdue}
    assert await stores.everything() == before
    assert stores.sent() == {}
    assert metrics.RECONCILED_AT._value.get() == seen


async def test_a_long_list_is_truncated_and_counted(stores: Stores) -> None:
    """The report names the first of many overdue images, unexplained ones before the others."""
    for _ in range(120):
        await stores.accepted(ReceiptKind.FETCH)
    lost = await stores.accepted()
    await Control(stores.files).pause("fetcher", "a test", by="operator")
    stores.now += HOUR + 60
    report = await stores.reconciler().look(dry_run=True)
    assert (len(report.overdue), report.overdue_count) == (100, 121)
    assert report.overdue[0].image_id == lost.image_id
    assert standings(report, "fetcher") == {Standing.PAUSED: 120}


async def test_a_pass_sends_at_most_its_limit_oldest_first(stores: Stores) -> None:
    """With more overdue images than one pass may send, the oldest are sent first, the others in the next pass."""
    ids = []
    for _ in range(5):
        ids.append((await stores.accepted()).image_id)
        stores.now += 60
    stores.now += HOUR
    reconciler = stores.reconciler(max_per_pass=2)
    for until in (2, 4, 5):
        report = await reconciler.look()
        assert standings(report, "sanitizer") == {Standing.OVERDUE: 5}
        assert {event.image_id for event in stores.events("sanitizer")} == set(ids[:until])


async def test_receipts_are_listed_in_parts(stores: Stores) -> None:
    """However few receipts one pass lists, successive passes cover all of them, except those older than the window."""
    ids = [(await stores.accepted()).image_id for _ in range(7)]
    stores.now += HOUR + 60
    reconciler = stores.reconciler(receipts_per_pass=3)
    for _ in range(3):
        await reconciler.look()
    assert {event.image_id for event in stores.events("sanitizer")} == set(ids)
    stores.now += 7 * 24 * HOUR
    report = await stores.reconciler().look()
    assert {item.image_id for item in report.overdue} == set(ids), "an image with an earlier resend stays listed"
    stores.log.topics.clear()
    for image_id in ids:
        await stores.files.delete(f"reconciler/{image_id}.json")
    assert (await stores.reconciler().look()).overdue == ()


async def test_two_reconcilers_do_no_harm(stores: Stores) -> None:
    """Two concurrent reconcilers may send an event twice, under one id."""
    await stores.accepted()
    stores.now += HOUR + 1
    for reconciler in (stores.reconciler(), stores.reconciler()):
        await reconciler.look()
    await stores.files.delete(next(key for key in await stores.everything() if key.startswith("reconciler/")))
    await stores.reconciler().look()
    records = stores.log.records(retry_topic("sanitizer"))
    assert len(records) == 2
    assert len({(record.header("ce_id"), record.key) for record in records}) == 1


async def test_a_pass_sets_metrics(stores: Stores) -> None:
    """The metrics show counts per stage and standing, the age of the oldest image and the time of the pass."""
    await stores.accepted()
    stores.now += 2 * HOUR
    await stores.accepted()
    await stores.reconciler().look()
    assert metrics.UNFINISHED.labels("sanitizer", "overdue")._value.get() == 1
    assert metrics.UNFINISHED.labels("sanitizer", "waiting")._value.get() == 1
    assert metrics.OLDEST_UNFINISHED._value.get() == pytest.approx(2 * HOUR, abs=1)
    assert metrics.RECONCILED_AT._value.get() == pytest.approx(time.time(), abs=60)
    assert {sample.labels["stage"] for sample in next(iter(metrics.UNFINISHED.collect())).samples} == set(AGENTS)


async def test_an_unavailable_log_fails_the_pass(stores: Stores) -> None:
    """While Kafka is unavailable the pass raises, and no try is counted."""
    await stores.accepted()
    stores.now += HOUR + 1
    stores.log.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await stores.reconciler().look()
    assert [key for key in await stores.everything() if key.startswith("reconciler/")] == []


async def test_any_lost_facts_are_recovered(stores: Stores) -> None:
    """Whichever facts of many images are lost, the resent events complete every image."""
    chance = random.Random(7)
    ids = [(await stores.accepted()).image_id for _ in range(12)]
    for image_id in ids:
        facts = Facts(image_id).all()
        await stores.indexed(*chance.sample(facts, chance.randint(0, len(facts) - 1)))
    for _ in range(6):
        stores.now += HOUR + 60
        stores.log.topics.clear()
        await stores.reconciler(objects_per_pass=1).look()
        for agent in AGENTS:
            for record in stores.log.records(retry_topic(agent)):
                event = decode(record, KINDS)
                by_stage = {fact.report.stage: fact for fact in Facts(event.image_id).all()}
                follows = list(by_stage.values()) if agent == "sanitizer" else [by_stage[agent]]
                await stores.indexed(*follows)
    for image_id in ids:
        record_ = await stores.tools.read_model.get(image_id)
        assert record_ is not None
        assert record_.state is ImageState.COMPLETED
