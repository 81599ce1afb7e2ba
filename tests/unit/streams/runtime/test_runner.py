"""The runner on the in-memory log: what it emits, when it acks, and that no event is lost."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from schemas.events.envelope import Event, Outgoing
from schemas.events.facts import ImageRefused, StageFailed, StageRetrying, StageSkipped
from schemas.values import ErrorCode, Profile, new_image_id
from streams import topics
from streams.errors import Malformed, ObjectGone, Retryable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.retries.dead_letters import DeadLetter
from streams.settings import FilesSettings, RetrySettings
from streams.stage import Reject, Skip, Stage, StageSettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import Bench, Seen, batch_stage, bench, echo_stage, emitted, message, uploaded


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


async def run(on: Bench, stage: Stage[Any, Any, Any], messages: Sequence[Outgoing]) -> MemoryLog:
    """Send messages, work until all are committed, stop."""
    await on.log.deliver(messages)
    names = [topic.name for topic in stage.consumes] + [topics.retry_topic(stage.name)]
    worker = MemoryWorker(on.log, stage.name, names, on.intake)
    await worker.until_idle()
    assert await worker.stop()
    return on.log


def facts(log: MemoryLog, kind: type[Event]) -> list[Any]:
    """Return the facts of one type."""
    found = [r for r in log.records("image.facts") if r.header("ce_type") == kind.type]
    return [kind.model_validate_json(r.value or b"") for r in found]


async def test_every_event_is_processed_and_committed(files: FileStore) -> None:
    """The outputs of a stage are in the log before its input is committed."""
    stage = echo_stage()
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded()) for _ in range(50)])
    assert len(facts(log, StageSkipped)) == 50
    assert sum(log.committed.values()) == 50


async def test_concurrency_limits_the_events_in_flight(files: FileStore) -> None:
    """At most `concurrency` events are in flight, whatever the backlog."""
    seen = Seen()
    stage = echo_stage(seen, seconds=0.002)
    on = bench(stage, files, MemoryLog(), settings=StageSettings(concurrency=3))
    await run(on, stage, [message(uploaded()) for _ in range(40)])
    assert seen.most == 3


async def test_events_of_one_image_keep_their_order(files: FileStore) -> None:
    """Events of one image are processed in order, one at a time; those of other images may overtake."""
    order: list[tuple[str, int]] = []
    running: set[str] = set()

    async def process(event: Event, _tools: None) -> Any:
        assert event.image_id not in running
        running.add(event.image_id)
        await asyncio.sleep(0.001 * (event.generation % 3))
        order.append((event.image_id, event.generation))
        running.discard(event.image_id)
        return emitted(event)

    plain = echo_stage()
    stage = Stage(plain.name, "1", plain.consumes, plain.emits, StageSettings, plain.open, process=process)
    ids = [new_image_id() for _ in range(4)]
    events = [message(uploaded(image, generation=g)) for g in range(1, 9) for image in ids]
    await run(bench(stage, files, MemoryLog(), settings=StageSettings(concurrency=16)), stage, events)
    for image in ids:
        assert [g for i, g in order if i == image] == list(range(1, 9))


async def test_a_rejected_image_becomes_a_fact_and_no_dead_letter(files: FileStore) -> None:
    """A bad image is an outcome: a fact with the submission fields, and no dead letter."""
    stage = echo_stage(act=lambda _e: Reject(ErrorCode.TRUNCATED_IMAGE, "The file ends too early."))
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded(filename="a.jpg", bucket="cats"))])
    (fact,) = facts(log, ImageRefused)
    assert (fact.code, fact.filename, fact.bucket) == (ErrorCode.TRUNCATED_IMAGE, "a.jpg", "cats")
    assert log.records("sanitizer.dead") == []


async def test_a_reported_skip_is_a_fact_and_an_unreported_one_is_silent(files: FileStore) -> None:
    """A missing model appears on the image; a superseded event is only counted."""
    skips = iter([Skip(ErrorCode.MODEL_UNAVAILABLE, "no weights", reported=True), Skip(ErrorCode.SUPERSEDED)])
    stage = echo_stage(act=lambda _e: next(skips))
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded()), message(uploaded())])
    (fact,) = facts(log, StageSkipped)
    assert fact.reason is ErrorCode.MODEL_UNAVAILABLE


async def test_a_bug_becomes_a_dead_letter_byte_for_byte_and_a_failed_fact(files: FileStore) -> None:
    """After any exception of a stage its event is stored unchanged, its image fails, and the next one is processed."""

    def act(event: Event) -> None:
        if event.generation == 7:
            raise ZeroDivisionError("a bug")

    stage = echo_stage(act=act)
    poison = message(uploaded(generation=7, bucket="cats", context={"order": 7}), x_custom="kept")
    log = await run(bench(stage, files, MemoryLog()), stage, [poison, message(uploaded())])
    (letter,) = log.records("sanitizer.dead")
    assert (letter.key, letter.value) == (poison.key, poison.value)
    assert letter.header("x-custom") == "kept"
    assert letter.header("dlq.error.code") == "internal-error"
    assert letter.header("dlq.error.class") == "ZeroDivisionError"
    assert letter.header("dlq.original.topic") == "image.uploaded"
    assert "ZeroDivisionError" in (letter.header("dlq.error.stack") or "")
    (fact,) = facts(log, StageFailed)
    assert fact.code is ErrorCode.INTERNAL_ERROR
    assert (fact.bucket, fact.context) == ("cats", {"order": 7})
    assert "ZeroDivisionError" not in fact.message
    assert len(facts(log, StageSkipped)) == 1


IMAGE = "0198c0de-7a11-7abc-8def-0123456789ab"
UPLOADED = ("ce_type", b"darkroom.image.uploaded.v1")


@pytest.mark.parametrize(
    ("poison", "code"),
    [
        (Outgoing("image.uploaded", b"k", b"\xff\x00 not json", (UPLOADED,)), "malformed-event"),
        (Outgoing("image.uploaded", b"k", None, (UPLOADED,)), "malformed-event"),
        (Outgoing("image.uploaded", None, b"{}", ()), "malformed-event"),
        (Outgoing("image.uploaded", b"k", b"{}", (("ce_type", b"somebody.elses.v1"),)), "unknown-event"),
        (Outgoing("image.uploaded", b"k", b"{}", (("ce_type", b"\xff\xfe"),)), "unknown-event"),
    ],
)
async def test_bytes_that_are_no_event_become_dead_letters(files: FileStore, poison: Outgoing, code: str) -> None:
    """Undecodable bytes are dead-lettered with a stable code, and the events after them are processed."""
    stage = echo_stage()
    log = await run(bench(stage, files, MemoryLog()), stage, [poison, message(uploaded())])
    (letter,) = log.records("sanitizer.dead")
    assert (letter.key, letter.value, letter.header("dlq.error.code")) == (poison.key, poison.value, code)
    assert len(facts(log, StageSkipped)) == 1


@pytest.mark.parametrize("key", ["keys/abc.json", "originals/anna/aa/x", "originals/default/../anna/aa/x", "images/x"])
async def test_an_event_that_names_a_foreign_object_is_dead_lettered_and_fails_its_image(
    files: FileStore, key: str
) -> None:
    """Only the owner's originals may be named: the stage never sees the event, and no fact repeats the reference."""
    seen = Seen()
    stage = echo_stage(seen)
    forged = uploaded()
    forged = forged.model_copy(update={"original": forged.original.model_copy(update={"key": key})})
    log = await run(bench(stage, files, MemoryLog()), stage, [message(forged), message(uploaded())])
    (letter,) = log.records("sanitizer.dead")
    assert (letter.value, letter.header("dlq.error.code")) == (forged.body(), "reference-not-allowed")
    (fact,) = facts(log, StageFailed)
    assert (fact.image_id, fact.code, fact.original) == (forged.image_id, ErrorCode.REFERENCE_NOT_ALLOWED, None)
    assert key not in fact.message
    assert len(facts(log, StageSkipped)) == 1


async def test_structured_events_are_processed_and_dead_lettered_byte_for_byte(files: FileStore) -> None:
    """An event in structured mode is processed; an invalid one is stored as it came and found by its subject."""
    event = uploaded()
    attributes = {"specversion": "1.0", "id": "1", "source": "shop", "type": event.type, "subject": event.image_id}
    header = (("content-type", b"application/cloudevents+json"),)
    good, bad = (
        Outgoing("image.uploaded", event.key(), json.dumps({**attributes, "data": data}).encode(), header)
        for data in (json.loads(event.body()), {"image_id": event.image_id.upper()})
    )
    stage = echo_stage()
    log = await run(bench(stage, files, MemoryLog()), stage, [good, bad])
    (fact,) = facts(log, StageSkipped)
    assert fact.image_id == event.image_id
    (letter,) = log.records("sanitizer.dead")
    assert (letter.key, letter.value, letter.header("content-type")) == (bad.key, bad.value, header[0][1].decode())
    assert letter.header("ce_subject") is None
    assert DeadLetter("sanitizer", letter, None).image_id == event.image_id


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"image_id": IMAGE, "owner": "anna", "generation": 2}, ()),
        ({"image_id": IMAGE.upper(), "owner": "anna", "generation": 2, "original": "a.jpg"}, ()),
        ({"owner": "anna", "generation": 2}, (("ce_subject", IMAGE.encode()),)),
        ({"image_id": 7, "owner": "anna", "generation": 2}, (("ce_subject", IMAGE.encode()),)),
    ],
)
async def test_a_malformed_event_fails_the_image_it_names(
    files: FileStore, body: dict[str, object], headers: tuple[tuple[str, bytes], ...]
) -> None:
    """The image's owner sees why nothing happens; the event is a dead letter byte for byte."""
    poison = Outgoing("image.uploaded", b"k", json.dumps(body).encode(), (UPLOADED, *headers))
    stage = echo_stage()
    log = await run(bench(stage, files, MemoryLog()), stage, [poison])
    (letter,) = log.records("sanitizer.dead")
    assert letter.value == poison.value
    (fact,) = facts(log, StageFailed)
    assert (fact.image_id, fact.owner, fact.generation) == (IMAGE, "anna", 2)
    assert (fact.code, fact.report.stage) == (ErrorCode.MALFORMED_EVENT, "sanitizer")


@pytest.mark.parametrize(
    "value",
    [
        f'{{"image_id": "{IMAGE}", "owner": "an',  # truncated: its owner is unknown
        f'{{"image_id": "{IMAGE}", "owner": "no owner/"}}',
        f'{{"image_id": "{IMAGE}", "generation": 0}}',
        '{"image_id": "x"}',
        "[]",
    ],
)
async def test_a_malformed_event_without_image_or_owner_fails_none(files: FileStore, value: str) -> None:
    """An image is never recorded under an owner that the event does not name."""
    stage = echo_stage()
    poison = Outgoing("image.uploaded", IMAGE.encode(), value.encode(), (UPLOADED,))
    log = await run(bench(stage, files, MemoryLog()), stage, [poison])
    assert len(log.records("sanitizer.dead")) == 1
    assert facts(log, StageFailed) == []


async def test_a_parameter_nobody_takes_rejects_the_image(files: FileStore) -> None:
    """The image's owner reads what is wrong; the stage does not see the event, and operators get no dead letter."""
    seen = Seen()
    stage = echo_stage(seen)
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded(profile=Profile(parameters={"x": {}})))])
    (fact,) = facts(log, ImageRefused)
    assert fact.code is ErrorCode.PARAMETERS_NOT_ALLOWED
    assert "'x'" in fact.message
    assert seen.images == []
    assert log.records("sanitizer.dead") == []


async def test_an_event_of_another_bucket_is_dead_lettered(files: FileStore) -> None:
    """The bucket of a reference is part of it: the object of that key in the configured bucket is not used instead."""
    stage = echo_stage()
    event = uploaded()
    event = event.model_copy(update={"original": event.original.model_copy(update={"bucket": "elsewhere"})})
    log = await run(bench(stage, files, MemoryLog()), stage, [message(event)])
    (letter,) = log.records("sanitizer.dead")
    assert letter.header("dlq.error.code") == "reference-not-allowed"


async def test_invalid_retry_headers_are_ignored(files: FileStore) -> None:
    """Malformed values in the retry headers count as absent."""
    stage = echo_stage(act=lambda _e: (_ for _ in ()).throw(Retryable("unavailable")))
    hostile = message(uploaded(), retry_attempt="-4e9", retry_delays="ninety")
    hostile = Outgoing(
        hostile.topic, hostile.key, hostile.value, (*hostile.headers, ("retry.attempt", b"x"), ("retry.delays", b"y"))
    )
    log = await run(bench(stage, files, MemoryLog()), stage, [hostile])
    assert len(log.records("sanitizer.delay.30s")) == 1


async def test_a_transient_error_is_retried_in_place(files: FileStore) -> None:
    """Two failures and a success emit the result alone, with no delay."""
    tries = iter([Retryable("unavailable"), Retryable("unavailable"), None])

    def act(_event: Event) -> None:
        if error := next(tries):
            raise error

    stage = echo_stage(act=act)
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded())])
    assert len(facts(log, StageSkipped)) == 1
    assert log.records("sanitizer.delay.30s") == []


async def test_a_lasting_error_passes_the_delay_topics_and_is_dead_lettered(files: FileStore) -> None:
    """30 s, 5 min, 30 min, then the dead letters with the dependency's code; the payload never changes."""
    stage = echo_stage(act=lambda _e: (_ for _ in ()).throw(Retryable("down", code=ErrorCode.SOURCE_UNAVAILABLE)))
    first = message(uploaded())
    log = await run(bench(stage, files, MemoryLog()), stage, [first])
    for tier in ("30s", "5m", "30m"):
        (delayed,) = log.records(f"sanitizer.delay.{tier}")
        assert (delayed.key, delayed.value) == (first.key, first.value)
        assert int(delayed.header("retry.due-ms") or 0) > 0
        back = Outgoing("sanitizer.retry", delayed.key, delayed.value, delayed.headers)
        await run(bench(stage, files, log), stage, [back])
    (letter,) = log.records("sanitizer.dead")
    assert letter.value == first.value
    assert letter.header("dlq.error.code") == "source-unavailable"
    assert letter.header("dlq.attempt") == "12"
    assert letter.header("dlq.original.topic") == "image.uploaded"
    (fact,) = facts(log, StageFailed)
    assert fact.report.attempts == 12


async def test_a_delayed_event_says_when_it_is_tried_again(files: FileStore) -> None:
    """With each delay the image's owner learns the attempts, the reason, and the time at which the router is due."""

    def act(_event: Event) -> None:
        raise Retryable("host 10.0.0.7 refused", code=ErrorCode.SOURCE_UNAVAILABLE)

    stage = echo_stage(act=act)
    log = await run(
        bench(stage, files, MemoryLog()), stage, [message(uploaded(bucket="cats", context={"order": 7}, generation=3))]
    )
    (delayed,) = log.records("sanitizer.delay.30s")
    (event,) = facts(log, StageRetrying)
    assert (event.report.stage, event.report.attempts, event.generation) == ("sanitizer", 3, 3)
    assert (event.code, event.bucket, event.context) == (ErrorCode.SOURCE_UNAVAILABLE, "cats", {"order": 7})
    assert "10.0.0.7" not in event.message
    due = datetime.fromisoformat(event.next_try_at).timestamp()
    assert int(delayed.header("retry.due-ms") or 0) == pytest.approx(due * 1000, abs=1)


async def test_retry_after_selects_the_delay(files: FileStore) -> None:
    """A Retry-After of ten minutes selects the first delay tier of at least that length."""
    stage = echo_stage(act=lambda _e: (_ for _ in ()).throw(Retryable("busy", after_s=600)))
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded())])
    assert len(log.records("sanitizer.delay.30m")) == 1


async def test_processing_past_its_deadline_is_cancelled_and_retried(files: FileStore) -> None:
    """A stage that hangs is cancelled at its deadline, and its event is delayed."""
    stage = echo_stage(seconds=60)
    on = bench(stage, files, MemoryLog(), settings=StageSettings(deadline_s=0.01), retry=RetrySettings(backoff_s=0.001))
    log = await run(on, stage, [message(uploaded())])
    assert len(log.records("sanitizer.delay.30s")) == 1


async def test_malformed_content_is_dead_lettered_at_once_with_its_own_code(files: FileStore) -> None:
    """An object that differs from what the event names is not retried."""
    stage = echo_stage(act=lambda _e: (_ for _ in ()).throw(Malformed("other bytes", code=ErrorCode.OBJECT_CHANGED)))
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded())])
    assert [r.header("dlq.error.code") for r in log.records("sanitizer.dead")] == ["object-changed"]


async def test_a_missing_object_fails_the_image_without_a_dead_letter(files: FileStore) -> None:
    """Late events of a deleted image are not dead-lettered; the indexer's tombstone rejects the fact."""
    stage = echo_stage(act=lambda _e: (_ for _ in ()).throw(ObjectGone("no such key")))
    log = await run(bench(stage, files, MemoryLog()), stage, [message(uploaded())])
    assert log.records("sanitizer.dead") == []
    assert [f.code for f in facts(log, StageFailed)] == [ErrorCode.GONE]


async def test_a_stage_left_out_of_the_profile_does_nothing(files: FileStore) -> None:
    """An event of an image whose profile leaves the stage out emits nothing."""
    sizes: list[int] = []
    stage = batch_stage(lambda events: [emitted(e) for e in events], sizes)
    event = uploaded(profile=Profile(stages=("sanitizer", "ocr")))
    log = await run(bench(stage, files, MemoryLog()), stage, [message(event)])
    assert sizes == []
    assert log.records("image.facts") == []


async def test_batches_fill_and_one_bad_image_fails_alone(files: FileStore) -> None:
    """Items of a batch succeed and fail independently."""
    sizes: list[int] = []
    stage = batch_stage(lambda es: [ValueError("bad") if e.generation == 2 else emitted(e) for e in es], sizes)
    on = bench(stage, files, MemoryLog(), settings=StageSettings(concurrency=1, batch_size=4, batch_wait_s=0.05))
    log = await run(on, stage, [message(uploaded(generation=2 if n == 3 else 1)) for n in range(8)])
    assert max(sizes) == 4
    assert len(facts(log, StageSkipped)) == 7
    assert len(log.records("detector.dead")) == 1


async def test_a_failed_batch_is_retried_one_item_at_a_time(files: FileStore) -> None:
    """When the whole call raises, each item is tried alone, and only the failing one is dead-lettered."""

    def answer(events: Sequence[Event]) -> list[Any]:
        if any(e.generation == 2 for e in events):
            raise RuntimeError("engine failed")
        return [emitted(e) for e in events]

    stage = batch_stage(answer)
    on = bench(stage, files, MemoryLog(), settings=StageSettings(concurrency=1, batch_size=4, batch_wait_s=0.05))
    log = await run(on, stage, [message(uploaded(generation=2 if n == 1 else 1)) for n in range(4)])
    assert len(facts(log, StageSkipped)) == 3
    assert len(log.records("detector.dead")) == 1


async def test_an_event_too_large_for_the_log_is_a_dead_letter_not_a_crash_loop(files: FileStore) -> None:
    """An output that exceeds the claim check's limit dead-letters its event and does not stop the worker."""
    stage = echo_stage(act=lambda e: emitted(e, note="x" * 300_000))
    on = bench(stage, files, MemoryLog())
    log = await run(on, stage, [message(uploaded())])
    assert len(log.records("sanitizer.dead")) == 1
    assert on.fatal == []


async def test_an_undeliverable_output_is_fatal_and_commits_nothing(files: FileStore) -> None:
    """If Kafka does not confirm the output, the process must exit, and the input is redelivered."""
    stage = echo_stage()
    log = MemoryLog()
    await log.deliver([message(uploaded())])
    on = bench(stage, files, log)
    log.unavailable = True
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    while not on.fatal:
        await asyncio.sleep(0.001)
    await worker.kill()
    assert log.committed == {}
    log.unavailable = False
    await run(bench(stage, files, log), stage, [])
    assert len(facts(log, StageSkipped)) == 1


async def test_a_killed_worker_loses_nothing_and_repeats_the_same_ids(files: FileStore) -> None:
    """Events interrupted at any moment are processed again by the next worker, with the same event ids."""
    log = MemoryLog()
    stage = echo_stage(seconds=0.002)
    await log.deliver([message(uploaded()) for _ in range(60)])
    for _ in range(5):
        on = bench(stage, files, log)
        worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
        await asyncio.sleep(0.01)
        await worker.kill()
    await run(bench(stage, files, log), stage, [])
    ids = {r.header("ce_id") for r in log.records("image.facts")}
    assert len(ids) == 60


async def test_stopping_finishes_events_in_flight_and_leaves_the_rest(files: FileStore) -> None:
    """On SIGTERM events in flight finish and are committed, and no further event starts."""
    log = MemoryLog()
    seen = Seen()
    stage = echo_stage(seen, seconds=0.02)
    await log.deliver([message(uploaded()) for _ in range(60)])
    on = bench(stage, files, log, settings=StageSettings(concurrency=4))
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    await asyncio.sleep(0.05)
    assert await worker.stop()
    assert seen.running == 0
    assert len(facts(log, StageSkipped)) == len(seen.images) < 60
    assert sum(log.committed.values()) == len(seen.images)
