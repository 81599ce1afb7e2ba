"""Reprocessing: events of a job, its rate, and recovery from crashes and outages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agents.core.merge import learn
from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageFetched, ImageUploaded
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ImageState, new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.keys import original_key, receipt_key
from streams.object_store.tombstones import Tombstones
from streams.operations.image_filter import WrongFilter
from streams.operations.reprocess_jobs import JobState, ReprocessJobs, drafted
from streams.operations.rerun_events import AlreadyDone, RerunSkipped, Restarts, SkipReason, rerun_analysis
from tests.support.facts import Facts, ref
from tests.support.read_models import merge
from tests.support.reprocessing import Backends, open_backends

URL = "https://example.org/x.jpg"


class Crash(Exception):
    """The runner's process ends."""


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    """Return empty backends."""
    async with open_backends(tmp_path) as found:
        yield found


@contextmanager
def skipped(reason: SkipReason) -> Iterator[None]:
    with pytest.raises(RerunSkipped) as caught:
        yield
    assert caught.value.reason is reason
    assert str(caught.value)


async def test_a_job_emits_one_event_per_selected_image(backends: Backends) -> None:
    """Each selected image gets the work event with the job's run in the bulk lane, for that stage alone."""
    images = await backends.complete(3)
    await merge(backends.read_model, images[1], 1, {"bucket": "other"})
    job = await ReprocessJobs(backends.files).start(drafted("ocr", "bucket=trip"))
    ended = await backends.finish(job)
    assert (ended.state, ended.total, ended.done, ended.skipped) == (JobState.DONE, 2, 2, 0)
    assert backends.emitted_images() == [images[0], images[2]]
    for target, event in backends.emitted():
        assert target == "ocr.retry"
        assert isinstance(event, ImageSanitized)
        assert (event.run, event.generation, event.owner) == (job.run, 1, "anna")
        record = await backends.read_model.get(event.image_id)
        assert record is not None
        assert {name: value for name, value in learn(event).keys.items() if value not in (None, [], ())} == {
            name: value
            for name in learn(event).keys
            if (value := record.model_dump(mode="json", exclude_none=True).get(name)) not in (None, [], ())
        }


async def test_an_event_is_rebuilt_from_the_record(backends: Backends) -> None:
    """The rerun's work event differs from the first one only in its run and its time."""
    (image,) = await backends.complete()
    record = await backends.read_model.get(image)
    assert record is not None
    first = Facts(image).sanitized()
    again = rerun_analysis(record, "resizer", 7).event
    assert again.model_copy(update={"run": 0, "occurred_at": first.occurred_at}) == first
    assert again.id != first.id
    assert again.model_copy(update={"run": 0}).id == first.id


async def test_a_job_keeps_its_rate(backends: Backends) -> None:
    """Twenty images at four a second take five seconds."""
    await backends.complete(20)
    job = await ReprocessJobs(backends.files).start(drafted("detector", "", per_second=4))
    began = backends.time
    ended = await backends.finish(job)
    assert ended.done == 20
    assert backends.time - began == pytest.approx(5.0, abs=0.3)
    assert ended.rate == pytest.approx(4.0, rel=0.1)


async def test_a_running_job_has_an_estimate(backends: Backends) -> None:
    """After one slice the job has its total, its count and the seconds left."""
    await backends.complete(20)
    job = await ReprocessJobs(backends.files).start(drafted("detector", "", per_second=4))
    assert job.eta_s is None
    await backends.runner().run_due()
    found = await ReprocessJobs(backends.files).get(job.id)
    assert found is not None
    assert (found.total, found.done) == (20, 8)
    assert found.eta_s == pytest.approx(3.0, rel=0.1)


async def test_after_a_crash_a_job_resumes_from_its_cursor(backends: Backends) -> None:
    """A crash between two saves repeats events with equal ids and loses no image."""
    images = await backends.complete(30)
    job = await ReprocessJobs(backends.files).start(drafted("embedder", "", per_second=10))
    await backends.runner().run_due()
    before = len(backends.emitted())
    crashing = backends.runner()

    async def crash(_seconds: float) -> None:
        if len(backends.emitted()) >= before + 5:
            raise Crash
        backends.time += 0.1

    crashing.sleep = crash
    with pytest.raises(Crash):
        await crashing.run_due()
    ended = await backends.finish(job)
    assert (ended.state, ended.done) == (JobState.DONE, 30)
    ids = [event.id for _, event in backends.emitted()]
    assert sorted(set(backends.emitted_images())) == images
    assert len(set(ids)) == 30
    assert len(ids) == 35


async def test_reruns_done_before_a_crash_are_not_repeated(backends: Backends) -> None:
    """An image whose record has this run, or a later one, gets no event."""
    (image,) = await backends.complete()
    await backends.record(Facts(image, run=7).text())
    record = await backends.read_model.get(image)
    assert record is not None
    with pytest.raises(AlreadyDone):
        rerun_analysis(record, "ocr", 7)
    with skipped(SkipReason.NEWER_RUN):
        rerun_analysis(record, "ocr", 6)
    assert rerun_analysis(record, "ocr", 8).event.run == 8


async def test_a_cancelled_job_emits_no_more(backends: Backends) -> None:
    """A cancelled job is returned as cancelled at once, and the runner stops."""
    await backends.complete(30)
    jobs = ReprocessJobs(backends.files)
    job = await jobs.start(drafted("ocr", "", per_second=5))
    runner = backends.runner()
    await runner.run_due()
    emitted = len(backends.emitted())
    assert 0 < emitted < 30
    cancelled = await jobs.cancel(job.id)
    assert cancelled is not None and cancelled.state is JobState.CANCELLED
    found = await jobs.get(job.id)
    assert found is not None and found.state is JobState.CANCELLED
    for worker in (runner, runner, backends.runner()):
        assert not await worker.run_due()
    assert len(backends.emitted()) == emitted
    ended = await jobs.get(job.id)
    assert ended is not None and (ended.state, ended.done) == (JobState.CANCELLED, emitted)
    assert await jobs.cancel("ocr-1") is None
    assert await jobs.get("../secrets") is None


async def test_a_full_bulk_lane_stalls_a_job(backends: Backends) -> None:
    """No events are added beyond the lane's limit; the job continues once there is room."""
    await backends.complete(10)
    job = await ReprocessJobs(backends.files).start(drafted("ocr", ""))
    backends.waiting = 1000
    assert not await backends.runner().run_due()
    backends.waiting = 996
    await backends.runner().run_due()
    assert len(backends.emitted()) == 4
    backends.waiting = 0
    assert (await backends.finish(job)).done == 10


async def test_a_job_waits_while_kafka_is_unavailable(backends: Backends) -> None:
    """An event that was not delivered is emitted later; the cursor does not pass it."""
    images = await backends.complete(3)
    job = await ReprocessJobs(backends.files).start(drafted("ocr", ""))
    runner = backends.runner()
    backends.log.unavailable = True
    with pytest.raises(DependencyUnavailable):
        await runner.run_due()
    backends.log.unavailable = False
    assert await runner.run_due()
    assert backends.emitted_images() == images
    found = await ReprocessJobs(backends.files).get(job.id)
    assert found is not None and found.done == 3


async def test_images_accepted_later_are_not_selected(backends: Backends) -> None:
    """Images accepted after the request ran the new version already, and would prolong the job without end."""
    early, late = await backends.complete(2)
    await merge(backends.read_model, late, 1, {"submitted_at": "2999-01-01T00:00:00Z"})
    ended = await backends.finish(await ReprocessJobs(backends.files).start(drafted("ocr", "")))
    assert (ended.total, backends.emitted_images()) == (1, [early])


async def test_skipped_images_are_counted_by_reason(backends: Backends) -> None:
    """An image that cannot be rerun is counted under its reason; the others are rerun."""
    done, rejected, pending = await backends.complete(1), new_image_id(), new_image_id()
    await backends.record(Facts(rejected).refused(), Facts(pending).sanitized())
    await merge(backends.read_model, rejected, 1, {"state": ImageState.REJECTED.value})
    ended = await backends.finish(await ReprocessJobs(backends.files).start(drafted("ocr", "")))
    assert (ended.done, ended.skipped) == (1, 2)
    assert ended.reasons == {"no-master": 1, "in-process": 1}
    assert backends.emitted_images() == done


async def test_a_stage_out_of_the_profile_is_not_run(backends: Backends) -> None:
    """A stage outside the image's profile is skipped."""
    facts = Facts(new_image_id(), stages=("sanitizer", "resizer"))
    await backends.record(facts.sanitized(), facts.resized())
    (record,) = await backends.read_model.scan()
    with skipped(SkipReason.NOT_IN_PROFILE):
        rerun_analysis(record, "ocr", 7)


async def test_a_rerun_of_the_sanitizer_is_a_new_generation(backends: Backends) -> None:
    """The image is processed again as generation 2, with a receipt, from its stored original."""
    (image,) = await backends.complete()
    job = await ReprocessJobs(backends.files).start(drafted("sanitizer", ""))
    assert (await backends.finish(job)).done == 1
    ((target, event),) = backends.emitted()
    assert (target, event.generation, event.run) == ("image.uploaded", 2, 0)
    assert isinstance(event, ImageUploaded)
    assert (event.original, event.filename, event.context) == (ref("a"), "me.jpg", {"note": "private"})
    assert event.submitted_at == "2026-01-01T00:00:00.000Z"
    receipt = Receipt.model_validate_json(await backends.files.get(receipt_key(f"{image}.2")))
    assert (receipt.kind, receipt.generation, receipt.submitted_at) == (ReceiptKind.REPROCESS, 2, job.started_at)


async def test_a_fetched_image_keeps_its_source(backends: Backends) -> None:
    """An image from a URL is rerun from the stored original, without a fetch."""
    await backends.complete(source_url=URL)
    await backends.finish(await ReprocessJobs(backends.files).start(drafted("sanitizer", "")))
    ((target, event),) = backends.emitted()
    assert target == "sanitizer.retry"
    assert isinstance(event, ImageFetched)
    assert event.url == URL


async def test_a_restart_is_idempotent(backends: Backends) -> None:
    """Repeats return the same event until the record shows the new generation, then raise AlreadyDone."""
    (image,) = await backends.complete()
    restarts, requested_at = Restarts(backends.files), "2026-02-02T00:00:00.000Z"
    record = await backends.read_model.get(image)
    assert record is not None
    first, second = [(await restarts.restart(record, requested_at)).event for _ in range(2)]
    assert first.id == second.id
    await backends.record(Facts(image, generation=2).sanitized())
    newer = await backends.read_model.get(image)
    assert newer is not None
    with pytest.raises(AlreadyDone):
        await restarts.restart(newer, requested_at)


@pytest.mark.parametrize("known_to", ["record", "erasure", "receipt"])
async def test_a_deleted_image_is_never_restarted(backends: Backends, known_to: str) -> None:
    """Wherever the deletion is recorded, the image stays deleted, and no receipt with user metadata remains."""
    (image,) = await backends.complete()
    record = await backends.read_model.get(image)
    assert record is not None
    if known_to == "record":
        await backends.read_model.write_tombstone(image, "anna", 2)
        record = await backends.read_model.get(image)
        assert record is not None
        with skipped(SkipReason.DELETED):
            rerun_analysis(record, "ocr", 7)
    elif known_to == "erasure":
        await Tombstones(backends.files).request(image, "anna", 2)
    else:
        deletion = Receipt(
            job_id=f"{image}.2", image_id=image, owner="anna", generation=2, kind=ReceiptKind.DELETE,
            submitted_at="2026-01-01T00:00:00Z",
        )  # fmt: skip
        await backends.files.put(receipt_key(f"{image}.2"), deletion.model_dump_json().encode(), content_type="x/y")
    with skipped(SkipReason.DELETED):
        await Restarts(backends.files).restart(record, "2026-02-02T00:00:00.000Z")
    receipts = [found.key async for found in backends.files.list("jobs/")]
    assert receipts == ([receipt_key(f"{image}.2")] if known_to == "receipt" else [])


async def test_a_deletion_during_the_restart_leaves_no_receipt(backends: Backends) -> None:
    """A deletion requested while the receipt is written wins."""
    (image,) = await backends.complete()
    record = await backends.read_model.get(image)
    assert record is not None

    class Deleting:
        """An object store that requests a deletion before each write of a receipt."""

        def __getattr__(self, name: str) -> object:
            return getattr(backends.files, name)

        async def put(self, key: str, data: bytes, *, content_type: str) -> None:
            await Tombstones(backends.files).request(image, "anna", 2)
            await backends.files.put(key, data, content_type=content_type)

    with skipped(SkipReason.DELETED):
        await Restarts(Deleting()).restart(record, "2026-02-02T00:00:00.000Z")  # type: ignore[arg-type]
    assert [found.key async for found in backends.files.list("jobs/")] == []


async def test_without_its_original_an_image_is_not_restarted(backends: Backends) -> None:
    """Without the original the image is skipped and keeps its state."""
    (image,) = await backends.complete()
    await backends.files.delete(ref("a").key)
    ended = await backends.finish(await ReprocessJobs(backends.files).start(drafted("sanitizer", "")))
    assert ended.reasons == {"original-gone": 1}
    assert backends.emitted() == []
    record = await backends.read_model.get(image)
    assert record is not None and record.state is ImageState.COMPLETED


async def test_a_rejected_image_is_restarted_from_its_receipt(backends: Backends) -> None:
    """A rejected image can be rerun under other limits: its receipt names its original."""
    image = new_image_id()
    original = ref("b", original_key("anna", "b" * 64))
    await backends.record(Facts(image).refused())
    await merge(backends.read_model, image, 1, {"state": ImageState.REJECTED.value})
    receipt = Receipt(
        job_id=f"{image}.1", image_id=image, owner="anna", generation=1, kind=ReceiptKind.UPLOAD,
        submitted_at="2026-01-01T00:00:00Z", original=original,
    )  # fmt: skip
    await backends.files.put(receipt_key(f"{image}.1"), receipt.model_dump_json().encode(), content_type="x/y")
    await backends.files.put(original.key, b"x", content_type="image/jpeg")
    await backends.finish(await ReprocessJobs(backends.files).start(drafted("sanitizer", "state=rejected")))
    ((_, event),) = backends.emitted()
    assert isinstance(event, ImageUploaded)
    assert (event.original, event.generation) == (original, 2)


async def test_an_invalid_job_is_refused(backends: Backends) -> None:
    """Invalid stages and filters raise; invalid stored jobs fail without affecting others."""
    jobs = ReprocessJobs(backends.files)
    with pytest.raises(ValueError, match="cannot be rerun"):
        await jobs.start(drafted("indexer", ""))
    with pytest.raises(WrongFilter):
        await jobs.start(drafted("ocr", "colour=red"))
    good = await jobs.start(drafted("ocr", ""))
    await jobs.save(good.model_copy(update={"id": "ocr-1", "run": 1, "where": "written=by hand"}))
    await backends.files.put("reprocess/ocr-2.json", b"{half", content_type="application/json")
    assert (await backends.finish(good)).state is JobState.DONE
    bad = await jobs.get("ocr-1")
    assert bad is not None and bad.state is JobState.FAILED
    assert "written" in (bad.error or "")


async def test_no_two_jobs_have_the_same_run(backends: Backends) -> None:
    """A later job has a higher run, even if the clock stands still or goes back."""
    jobs = ReprocessJobs(backends.files)
    future = (await jobs.start(drafted("ocr", ""))).model_copy(
        update={"run": 99_999_999_999_999, "id": "ocr-99999999999999"}
    )
    await jobs.save(future)
    later = await jobs.start(drafted("ocr", ""))
    assert later.run > future.run
    assert [job.id for job in await jobs.all()][:2] == [later.id, future.id]
