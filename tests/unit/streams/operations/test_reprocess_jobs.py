"""Reprocessing: which events a job says, at what pace, and that nothing stops it half-way."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from agents.core.merge import learn
from agents.indexing.record_facts import record as record_fact
from schemas.events.envelope import Event, decode
from schemas.events.facts import Fact, ImageSanitized
from schemas.events.intake import ImageFetched, ImageUploaded
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ImageState, new_image_id
from streams.errors import DependencyUnavailable
from streams.lanes.bulk_lane import read_bulk
from streams.object_store.factory import open_files
from streams.object_store.keys import original_key, receipt_key
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.operations.image_filter import WrongFilter
from streams.operations.reprocess_jobs import JobState, ReprocessJob, ReprocessJobs, ReprocessRunner, drafted
from streams.operations.rerun_events import DoneAlready, NotAgain, Restarts, WhyNot, rerun_analysis
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import FilesSettings, QdrantSettings
from streams.testing.memory_log import MemoryLog
from streams.topics import BULK, LANE_TARGET_HEADER
from tests.support.facts import Facts, ref

URL = "https://example.org/x.jpg"


class Death(Exception):
    """The runner's process ends."""


@dataclass
class Hall:
    """A read model, an object store and a log, with a clock that stands still until somebody sleeps."""

    files: FileStore
    read_model: ReadModel
    log: MemoryLog = field(default_factory=MemoryLog)
    time: float = 1000.0
    waiting: int = 0

    def runner(self) -> ReprocessRunner:
        """Return a runner as after a start: it knows nothing but what was saved."""
        return ReprocessRunner(
            self.files, self.read_model, self.log, waiting=self._waiting, clock=lambda: self.time, sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.time += seconds

    async def _waiting(self) -> int:
        return self.waiting

    async def tell(self, *facts: Fact) -> None:
        """Write facts into the read model, and the state that follows from them."""
        for fact in facts:
            await record_fact(fact, self.read_model, Tombstones(self.files))

    async def complete(self, count: int = 1, *, source_url: str | None = None) -> list[str]:
        """Make images whose stages are all done; return their ids, oldest first."""
        images = [new_image_id() for _ in range(count)]
        for image in images:
            first, *others = Facts(image).all()
            if source_url is not None:
                first = Facts(image).sanitized(source_url=source_url)
            await self.tell(first, *others)
            await self.read_model.merge(image, 1, {"state": ImageState.COMPLETED.value})
            assert isinstance(first, ImageSanitized)
            await self.files.put(first.original.key, b"x", content_type="image/jpeg")
        return images

    def said(self) -> list[tuple[str, Event]]:
        """Return what waits in the bulk lane: the target and the event, in the order it was said."""
        found = []
        for record in sorted(self.log.records(BULK.name), key=lambda record: record.header("ce_subject") or ""):
            read_bulk(record)
            found.append((record.header(LANE_TARGET_HEADER) or "", decode(record, BULK.events)))
        return found

    def images_said(self) -> list[str]:
        return [event.image_id for _, event in self.said()]

    async def finish(self, job: ReprocessJob, *, turns: int = 50) -> ReprocessJob:
        """Give a job turns until it has ended."""
        runner = self.runner()
        for _ in range(turns):
            await runner.run_due()
            found = await ReprocessJobs(self.files).get(job.id)
            assert found is not None
            if found.state is not JobState.RUNNING:
                return found
        raise AssertionError(f"the job has not ended after {turns} turns: {found}")


@pytest.fixture
async def hall(tmp_path: Path) -> AsyncIterator[Hall]:
    """Return a hall of its own."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        yield Hall(files, read_model)


@contextmanager
def refused(why: WhyNot) -> Iterator[None]:
    with pytest.raises(NotAgain) as refusal:
        yield
    assert refusal.value.why is why
    assert str(refusal.value)


async def test_a_job_says_one_event_per_selected_image(hall: Hall) -> None:
    """Each image a filter selects gets the stage's work event, of this run, in the bulk lane, for that stage alone."""
    images = await hall.complete(3)
    await hall.read_model.merge(images[1], 1, {"bucket": "other"})
    job = await ReprocessJobs(hall.files).start(drafted("ocr", "bucket=trip"))
    ended = await hall.finish(job)
    assert (ended.state, ended.total, ended.done, ended.skipped) == (JobState.DONE, 2, 2, 0)
    assert hall.images_said() == [images[0], images[2]]
    for target, event in hall.said():
        assert target == "ocr.retry"
        assert isinstance(event, ImageSanitized)
        assert (event.run, event.generation, event.owner) == (job.run, 1, "anna")
        record = await hall.read_model.get(event.image_id)
        assert record is not None
        assert {name: value for name, value in learn(event).keys.items() if value not in (None, [], ())} == {
            name: value
            for name in learn(event).keys
            if (value := record.model_dump(mode="json", exclude_none=True).get(name)) not in (None, [], ())
        }


async def test_an_event_is_rebuilt_as_it_was_said(hall: Hall) -> None:
    """The rerun's work event differs from the first one only in its run and its time."""
    (image,) = await hall.complete()
    record = await hall.read_model.get(image)
    assert record is not None
    first = Facts(image).sanitized()
    again = rerun_analysis(record, "resizer", 7).event
    assert again.model_copy(update={"run": 0, "occurred_at": first.occurred_at}) == first
    assert again.id != first.id
    assert again.model_copy(update={"run": 0}).id == first.id


async def test_a_job_keeps_its_pace(hall: Hall) -> None:
    """Twenty images at four a second take five seconds, whatever turns they fall in."""
    await hall.complete(20)
    job = await ReprocessJobs(hall.files).start(drafted("detector", "", per_second=4))
    began = hall.time
    ended = await hall.finish(job)
    assert ended.done == 20
    assert hall.time - began == pytest.approx(5.0, abs=0.3)
    assert ended.rate == pytest.approx(4.0, rel=0.1)


async def test_progress_tells_how_long_it_still_takes(hall: Hall) -> None:
    """After a turn the job says how far it is, how fast, and when it will be over."""
    await hall.complete(20)
    job = await ReprocessJobs(hall.files).start(drafted("detector", "", per_second=4))
    assert job.eta_s is None
    await hall.runner().run_due()
    found = await ReprocessJobs(hall.files).get(job.id)
    assert found is not None
    assert (found.total, found.done) == (20, 8)
    assert found.eta_s == pytest.approx(3.0, rel=0.1)


async def test_after_a_death_a_job_goes_on_from_its_cursor(hall: Hall) -> None:
    """A runner that dies between two saves costs repeated events with the ids they had, and no image."""
    images = await hall.complete(30)
    job = await ReprocessJobs(hall.files).start(drafted("embedder", "", per_second=10))
    await hall.runner().run_due()
    before = len(hall.said())
    dying = hall.runner()

    async def die(_seconds: float) -> None:
        if len(hall.said()) >= before + 5:
            raise Death
        hall.time += 0.1

    dying.sleep = die
    with pytest.raises(Death):
        await dying.run_due()
    ended = await hall.finish(job)
    assert (ended.state, ended.done) == (JobState.DONE, 30)
    ids = [event.id for _, event in hall.said()]
    assert sorted(set(hall.images_said())) == images
    assert len(set(ids)) == 30
    assert len(ids) == 35


async def test_what_was_done_before_a_death_is_not_asked_for_again(hall: Hall) -> None:
    """An image whose record has this run, or a later one, needs no event."""
    (image,) = await hall.complete()
    await hall.tell(Facts(image, run=7).text())
    record = await hall.read_model.get(image)
    assert record is not None
    with pytest.raises(DoneAlready):
        rerun_analysis(record, "ocr", 7)
    with refused(WhyNot.NEWER_RUN):
        rerun_analysis(record, "ocr", 6)
    assert rerun_analysis(record, "ocr", 8).event.run == 8


async def test_a_cancelled_job_says_no_more(hall: Hall) -> None:
    """After a cancel the job is cancelled at once for whoever asks, and the runner stops where it is."""
    await hall.complete(30)
    jobs = ReprocessJobs(hall.files)
    job = await jobs.start(drafted("ocr", "", per_second=5))
    runner = hall.runner()
    await runner.run_due()
    said = len(hall.said())
    assert 0 < said < 30
    cancelled = await jobs.cancel(job.id)
    assert cancelled is not None and cancelled.state is JobState.CANCELLED
    found = await jobs.get(job.id)
    assert found is not None and found.state is JobState.CANCELLED
    for worker in (runner, runner, hall.runner()):
        assert not await worker.run_due()
    assert len(hall.said()) == said
    ended = await jobs.get(job.id)
    assert ended is not None and (ended.state, ended.done) == (JobState.CANCELLED, said)
    assert await jobs.cancel("ocr-1") is None
    assert await jobs.get("../secrets") is None


async def test_a_full_bulk_lane_holds_a_job_back(hall: Hall) -> None:
    """No more events are added than the lane may hold; when there is room again the job goes on."""
    await hall.complete(10)
    job = await ReprocessJobs(hall.files).start(drafted("ocr", ""))
    hall.waiting = 1000
    assert not await hall.runner().run_due()
    hall.waiting = 996
    await hall.runner().run_due()
    assert len(hall.said()) == 4
    hall.waiting = 0
    assert (await hall.finish(job)).done == 10


async def test_a_job_waits_while_kafka_is_away(hall: Hall) -> None:
    """An event Kafka did not take is said when it is back; the job is neither over nor past it."""
    images = await hall.complete(3)
    job = await ReprocessJobs(hall.files).start(drafted("ocr", ""))
    runner = hall.runner()
    hall.log.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await runner.run_due()
    hall.log.unavailable = False
    assert await runner.run_due()
    assert hall.images_said() == images
    found = await ReprocessJobs(hall.files).get(job.id)
    assert found is not None and found.done == 3


async def test_images_accepted_later_are_left_alone(hall: Hall) -> None:
    """What came after the request was made by the new version anyway, and would keep the job from ending."""
    early, late = await hall.complete(2)
    await hall.read_model.merge(late, 1, {"submitted_at": "2999-01-01T00:00:00Z"})
    ended = await hall.finish(await ReprocessJobs(hall.files).start(drafted("ocr", "")))
    assert (ended.total, hall.images_said()) == (1, [early])


async def test_skipped_images_say_why(hall: Hall) -> None:
    """An image that cannot run again is counted under its reason, and the others go on."""
    done, refused_one, pending = await hall.complete(1), new_image_id(), new_image_id()
    await hall.tell(Facts(refused_one).refused(), Facts(pending).sanitized())
    await hall.read_model.merge(refused_one, 1, {"state": ImageState.REJECTED.value})
    ended = await hall.finish(await ReprocessJobs(hall.files).start(drafted("ocr", "")))
    assert (ended.done, ended.skipped) == (1, 2)
    assert ended.reasons == {"no-master": 1, "in-process": 1}
    assert hall.images_said() == done


async def test_a_stage_out_of_the_profile_is_not_run(hall: Hall) -> None:
    """A rerun never does what the image was never to pass."""
    facts = Facts(new_image_id(), stages=("sanitizer", "resizer"))
    await hall.tell(facts.sanitized(), facts.resized())
    (record,) = await hall.read_model.scan()
    with refused(WhyNot.NOT_IN_PROFILE):
        rerun_analysis(record, "ocr", 7)


async def test_a_rerun_of_the_sanitizer_is_a_new_generation(hall: Hall) -> None:
    """The whole image runs again as generation 2, with its receipt, from the original it has."""
    (image,) = await hall.complete()
    job = await ReprocessJobs(hall.files).start(drafted("sanitizer", ""))
    assert (await hall.finish(job)).done == 1
    ((target, event),) = hall.said()
    assert (target, event.generation, event.run) == ("image.uploaded", 2, 0)
    assert isinstance(event, ImageUploaded)
    assert (event.original, event.filename, event.context) == (ref("a"), "me.jpg", {"note": "private"})
    assert event.submitted_at == "2026-01-01T00:00:00.000Z"
    receipt = Receipt.model_validate_json(await hall.files.get(receipt_key(f"{image}.2")))
    assert (receipt.kind, receipt.generation, receipt.submitted_at) == (ReceiptKind.REPROCESS, 2, job.started_at)


async def test_a_fetched_image_keeps_its_source(hall: Hall) -> None:
    """What came from a URL runs again as what was fetched, without being fetched."""
    await hall.complete(source_url=URL)
    await hall.finish(await ReprocessJobs(hall.files).start(drafted("sanitizer", "")))
    ((target, event),) = hall.said()
    assert target == "sanitizer.retry"
    assert isinstance(event, ImageFetched)
    assert event.url == URL


async def test_a_restart_is_asked_for_once(hall: Hall) -> None:
    """Going over an image again repeats the same event until the new generation is seen, and then nothing."""
    (image,) = await hall.complete()
    restarts, asked_at = Restarts(hall.files), "2026-02-02T00:00:00.000Z"
    record = await hall.read_model.get(image)
    assert record is not None
    first, second = [(await restarts.restart(record, asked_at)).event for _ in range(2)]
    assert first.id == second.id
    await hall.tell(Facts(image, generation=2).sanitized())
    newer = await hall.read_model.get(image)
    assert newer is not None
    with pytest.raises(DoneAlready):
        await restarts.restart(newer, asked_at)


@pytest.mark.parametrize("known_to", ["record", "erasure", "receipt"])
async def test_a_deleted_image_is_never_restarted(hall: Hall, known_to: str) -> None:
    """Wherever a deletion is known first, the image stays deleted, and no receipt with its sender's words is left."""
    (image,) = await hall.complete()
    record = await hall.read_model.get(image)
    assert record is not None
    if known_to == "record":
        await hall.read_model.bury(image, "anna", 2)
        record = await hall.read_model.get(image)
        assert record is not None
        with refused(WhyNot.DELETED):
            rerun_analysis(record, "ocr", 7)
    elif known_to == "erasure":
        await Tombstones(hall.files).request(image, "anna", 2)
    else:
        deletion = Receipt(
            job_id=f"{image}.2", image_id=image, owner="anna", generation=2, kind=ReceiptKind.DELETE,
            submitted_at="2026-01-01T00:00:00Z",
        )  # fmt: skip
        await hall.files.put(receipt_key(f"{image}.2"), deletion.model_dump_json().encode(), content_type="x/y")
    with refused(WhyNot.DELETED):
        await Restarts(hall.files).restart(record, "2026-02-02T00:00:00.000Z")
    receipts = [found.key async for found in hall.files.list("jobs/")]
    assert receipts == ([receipt_key(f"{image}.2")] if known_to == "receipt" else [])


async def test_a_deletion_during_the_restart_leaves_no_receipt(hall: Hall) -> None:
    """A deletion asked for while the receipt is being written wins."""
    (image,) = await hall.complete()
    record = await hall.read_model.get(image)
    assert record is not None

    class Deleting:
        """An object store in whose every write of a receipt a deletion comes in between."""

        def __getattr__(self, name: str) -> object:
            return getattr(hall.files, name)

        async def put(self, key: str, data: bytes, *, content_type: str) -> None:
            await Tombstones(hall.files).request(image, "anna", 2)
            await hall.files.put(key, data, content_type=content_type)

    with refused(WhyNot.DELETED):
        await Restarts(Deleting()).restart(record, "2026-02-02T00:00:00.000Z")  # type: ignore[arg-type]
    assert [found.key async for found in hall.files.list("jobs/")] == []


async def test_without_its_original_an_image_is_not_restarted(hall: Hall) -> None:
    """When the bytes as received are gone there is nothing to sanitize, and the image stays as it is."""
    (image,) = await hall.complete()
    await hall.files.delete(ref("a").key)
    ended = await hall.finish(await ReprocessJobs(hall.files).start(drafted("sanitizer", "")))
    assert ended.reasons == {"original-gone": 1}
    assert hall.said() == []
    record = await hall.read_model.get(image)
    assert record is not None and record.state is ImageState.COMPLETED


async def test_a_refused_image_is_restarted_from_its_receipt(hall: Hall) -> None:
    """An image the sanitizer refused can be tried again under other limits: its receipt knows its original."""
    image = new_image_id()
    original = ref("b", original_key("anna", "b" * 64))
    await hall.tell(Facts(image).refused())
    await hall.read_model.merge(image, 1, {"state": ImageState.REJECTED.value})
    receipt = Receipt(
        job_id=f"{image}.1", image_id=image, owner="anna", generation=1, kind=ReceiptKind.UPLOAD,
        submitted_at="2026-01-01T00:00:00Z", original=original,
    )  # fmt: skip
    await hall.files.put(receipt_key(f"{image}.1"), receipt.model_dump_json().encode(), content_type="x/y")
    await hall.files.put(original.key, b"x", content_type="image/jpeg")
    await hall.finish(await ReprocessJobs(hall.files).start(drafted("sanitizer", "state=rejected")))
    ((_, event),) = hall.said()
    assert isinstance(event, ImageUploaded)
    assert (event.original, event.generation) == (original, 2)


async def test_a_wrong_job_is_refused(hall: Hall) -> None:
    """A stage that cannot run again, and a filter that is none, never become a job; nor do they stop others."""
    jobs = ReprocessJobs(hall.files)
    with pytest.raises(ValueError, match="cannot run again"):
        await jobs.start(drafted("indexer", ""))
    with pytest.raises(WrongFilter):
        await jobs.start(drafted("ocr", "colour=red"))
    good = await jobs.start(drafted("ocr", ""))
    await jobs.save(good.model_copy(update={"id": "ocr-1", "run": 1, "where": "written=by hand"}))
    await hall.files.put("reprocess/ocr-2.json", b"{half", content_type="application/json")
    assert (await hall.finish(good)).state is JobState.DONE
    bad = await jobs.get("ocr-1")
    assert bad is not None and bad.state is JobState.FAILED
    assert "written" in (bad.error or "")


async def test_no_two_jobs_have_the_same_run(hall: Hall) -> None:
    """A job asked for later is the later run, even when the clock stands still or goes back."""
    jobs = ReprocessJobs(hall.files)
    future = (await jobs.start(drafted("ocr", ""))).model_copy(
        update={"run": 99_999_999_999_999, "id": "ocr-99999999999999"}
    )
    await jobs.save(future)
    later = await jobs.start(drafted("ocr", ""))
    assert later.run > future.run
    assert [job.id for job in await jobs.all()][:2] == [later.id, future.id]
