"""The deletion check: a certain deletion wins against events in flight; one that is not certain stops nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import pytest

from schemas.events.envelope import Event, Outgoing, Record
from schemas.events.facts import DeletionRequested, ImageSanitized
from schemas.values import ErrorCode, new_image_id
from streams import topics
from streams.errors import DependencyUnavailable, Malformed, Retryable
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones, erasure_key, objects_of
from streams.runtime.poison_events import PoisonEventTracker
from streams.runtime.tombstone_check import TombstoneCheck, hashes_in
from streams.settings import FilesSettings, RetrySettings
from streams.stage import Emit, Outcome, Reject
from streams.telemetry import metrics
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.facts import Facts
from tests.support.stage_kit import SHA, Seen, bench, echo_stage, emitted, message, uploaded


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield store


class UnavailableCheck:
    """A deletion check that is unavailable for a number of calls, then drops nothing."""

    def __init__(self, failures: int) -> None:
        self.failures = failures

    async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
        self.failures -= 1
        if self.failures >= 0:
            raise DependencyUnavailable("the store is unavailable")
        return False


async def delete(files: FileStore, event: Event, generation: int = 2) -> None:
    """Make a deletion certain, as the indexer does first."""
    assert await Tombstones(files).make_certain(event.image_id, event.owner, generation) is not None


async def run(
    stage: Any, files: FileStore, messages: Sequence[Outgoing], **more: Any
) -> tuple[MemoryLog, list[BaseException]]:
    """Send messages, work until all are committed, stop."""
    on = bench(stage, files, MemoryLog(), **{"deletion_check": TombstoneCheck(files), **more})
    await on.log.deliver(messages)
    worker = MemoryWorker(on.log, stage.name, [topic.name for topic in stage.consumes], on.intake)
    await worker.until_idle()
    assert await worker.stop()
    return on.log, on.fatal


def followed(log: MemoryLog) -> dict[str, int]:
    """Return the number of messages per topic, the input topic excluded."""
    return {name: len(log.records(name)) for name in log.topics if name != "image.uploaded" and log.records(name)}


async def test_an_event_of_a_deleted_image_is_not_processed(files: FileStore) -> None:
    """Events of a deleted image are neither processed nor emit anything; other images are processed."""
    seen, gone, other = Seen(), uploaded(), uploaded()
    await delete(files, gone)
    counter = metrics.FENCED.labels("sanitizer")
    before = counter._value.get()
    log, fatal = await run(echo_stage(seen), files, [message(gone), message(other)])
    assert seen.images == [other.image_id]
    assert [record.header("ce_subject") for record in log.records("image.facts")] == [other.image_id]
    assert (counter._value.get() - before, fatal) == (1, [])


@pytest.mark.parametrize(
    "act",
    [
        emitted,
        lambda _e: Reject(ErrorCode.CORRUPT_IMAGE, "no"),
        None,
        Retryable("unavailable"),
        Malformed("no"),
        KeyError("bug"),
    ],
    ids=["emits", "refuses", "says", "retries", "malformed", "bug"],
)
async def test_a_deletion_during_processing_drops_every_outcome(files: FileStore, act: Any) -> None:
    """An image deleted during processing leaves no fact, delay or dead letter, and its stored objects are removed."""
    event = uploaded()
    key = image_key(event.image_id, 1, "master.png")
    await files.put(image_key(event.image_id, 3, "master.png"), b"of a newer run", content_type="image/png")

    class DeletingCheck(TombstoneCheck):
        """Deletes the image just after the first check passed its event."""

        async def drops(self, event: Event, answer: Outcome | Exception | None = None) -> bool:
            dropped = await super().drops(event, answer)
            if answer is None:
                await files.put(key, b"stored by the work", content_type="image/png")
                await delete(files, event)
            return dropped

    def work(event: Event) -> Outcome | None:
        if isinstance(act, Exception):
            raise act
        return act(event) if isinstance(act, Callable) else None  # type: ignore[arg-type]

    stage = echo_stage(act=work)
    log, fatal = await run(
        stage,
        files,
        [message(event)],
        deletion_check=DeletingCheck(files),
        retry=RetrySettings(in_place_tries=1, backoff_s=0.001),
    )
    assert (followed(log), fatal) == ({}, [])
    assert [key async for key in objects_of(files, event.image_id, 9)] == [image_key(event.image_id, 3, "master.png")]
    assert await Tombstones(files).noted_hashes(event.image_id) == {SHA}


async def test_a_deletion_that_is_not_certain_stops_nothing(files: FileStore) -> None:
    """A deletion that is not in the log yet may still be rejected, so events are processed."""
    event = uploaded()
    assert await Tombstones(files).request(event.image_id, event.owner, 2)
    log, _ = await run(echo_stage(), files, [message(event)])
    assert followed(log) == {"image.facts": 1}


async def test_only_the_generations_and_the_owner_of_the_deletion_are_dropped(files: FileStore) -> None:
    """Events of a newer generation or of another owner pass."""
    newer, foreign = uploaded(generation=3), uploaded(owner="bert")
    await delete(files, newer)
    assert await Tombstones(files).make_certain(foreign.image_id, "anna", 2) is not None
    log, _ = await run(echo_stage(), files, [message(newer), message(foreign)])
    assert followed(log) == {"image.facts": 2}


async def test_a_check_that_fails_briefly_is_repeated(files: FileStore) -> None:
    """A store that is briefly unavailable, before or after processing, only delays the check."""
    for failures in (1, 2):
        log, fatal = await run(echo_stage(), files, [message(uploaded())], deletion_check=UnavailableCheck(failures))
        assert (followed(log), fatal) == ({"image.facts": 1}, [])


async def test_an_event_waits_while_its_deletion_is_unknown(files: FileStore) -> None:
    """An unavailable store never counts as "not deleted": the event is delayed and emits nothing."""
    log, fatal = await run(echo_stage(), files, [message(uploaded())], deletion_check=UnavailableCheck(99))
    assert (followed(log), fatal) == ({"sanitizer.delay.30s": 1}, [])


async def test_an_unreadable_tombstone_delays_the_event(files: FileStore) -> None:
    """Events of an image whose tombstone is damaged are delayed, not processed."""
    event = uploaded()
    await files.put(erasure_key(event.image_id), b"{", content_type="application/json")
    log, _ = await run(echo_stage(), files, [message(event)])
    assert followed(log) == {"sanitizer.delay.30s": 1}


async def test_a_poison_event_of_a_deleted_image_leaves_no_dead_letter(files: FileStore, tmp_path: Path) -> None:
    """An event that crashed its worker twice is dropped, not dead-lettered, if its image was deleted meanwhile."""
    events = [uploaded(), uploaded()]
    await delete(files, events[0])
    for event in events:
        log = MemoryLog()
        (record,) = [log.append(message(event))]
        folder = tmp_path / event.image_id
        folder.mkdir()
        for _ in range(2):
            PoisonEventTracker(folder).begin(Record(record.topic, record.partition, record.offset, None, None))
        on = bench(echo_stage(), files, log, markers=PoisonEventTracker(folder), deletion_check=TombstoneCheck(files))
        worker = MemoryWorker(log, "sanitizer", ["image.uploaded"], on.intake)
        await worker.until_idle()
        await worker.stop()
        letters = len(log.records(topics.dead_topic("sanitizer")))
        assert letters == (0 if event is events[0] else 1)


async def test_a_deletion_event_passes_its_own_tombstone(files: FileStore) -> None:
    """The event that deletes an image is never dropped because of the image's tombstone."""
    event = DeletionRequested(image_id=new_image_id(), owner="anna", generation=2)
    await delete(files, event)
    assert not await TombstoneCheck(files).drops(event)


async def test_a_replay_after_the_end_leaves_no_notes(files: FileStore) -> None:
    """An event dropped before processing, after its erasure was finished, does not reopen the erasure."""
    event, erasures = uploaded(), Tombstones(files)
    erasure = await erasures.make_certain(event.image_id, event.owner, 2)
    assert erasure is not None
    await erasures.finish(erasure, erasure.removed)
    deletion_check = TombstoneCheck(files)
    assert await deletion_check.drops(event)
    assert [image async for image in erasures.unfinished()] == []
    assert await deletion_check.drops(event, Emit(()))
    assert [image async for image in erasures.unfinished()] == [event.image_id]


def test_the_hashes_of_an_event_are_those_of_original_and_master() -> None:
    """The sha256s in an event are the keys of results and originals."""
    sanitized = Facts(new_image_id()).sanitized()
    assert isinstance(sanitized, ImageSanitized)
    assert hashes_in(uploaded()) == {SHA}
    assert hashes_in(sanitized) == {sanitized.original.sha256, sanitized.image.master.sha256}
    assert hashes_in(Facts(new_image_id()).text()) == set()


class Counted:
    """A store that counts the calls that look for tombstones; `fails` makes them fail."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self.calls: list[int] = []
        self.fails = False
        self.waits: asyncio.Event | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    async def existing(self, keys: Collection[str]) -> set[str]:
        self.calls.append(len(keys))
        found = await self._files.existing(keys)
        if self.waits is not None:
            await self.waits.wait()
        if self.fails:
            raise DependencyUnavailable("the store is unavailable")
        return found


async def test_concurrent_checks_share_a_call(files: FileStore) -> None:
    """Checks that begin together cost one call, and each gets its own answer."""
    counted: Any = Counted(files)
    events = [uploaded() for _ in range(20)]
    await delete(files, events[7])
    check = TombstoneCheck(counted)
    answers = await asyncio.gather(*(check.drops(event) for event in [*events, events[7]]))
    assert answers == [event is events[7] for event in [*events, events[7]]]
    assert counted.calls == [20]


async def test_a_check_never_shares_a_call_that_began_before_it(files: FileStore) -> None:
    """A deletion that is certain when a check begins is found, even while an earlier check of the image waits."""
    counted: Any = Counted(files)
    counted.waits = asyncio.Event()
    event, check = uploaded(), TombstoneCheck(counted)
    early = asyncio.create_task(check.drops(event))
    async with asyncio.timeout(60):
        while not counted.calls:
            await asyncio.sleep(0.001)
    await delete(files, event)
    late = asyncio.create_task(check.drops(event))
    async with asyncio.timeout(60):
        while len(counted.calls) < 2:
            await asyncio.sleep(0.001)
    counted.waits.set()
    assert await late
    await early


async def test_checks_that_begin_during_a_call_share_the_next(
    files: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a call is in progress, checks wait for its end and are answered by one call, each by its own answer."""
    monkeypatch.setattr("streams.runtime.tombstone_check.LONGEST_S", 60)
    counted: Any = Counted(files)
    counted.waits = asyncio.Event()
    events, check = [uploaded() for _ in range(9)], TombstoneCheck(counted)
    await delete(files, events[5])
    tasks = []
    for event in events:
        tasks.append(asyncio.create_task(check.drops(event)))
        await asyncio.sleep(0.001)
    counted.waits.set()
    async with asyncio.timeout(30):
        assert await asyncio.gather(*tasks) == [event is events[5] for event in events]
    assert counted.calls == [1, 8]


async def test_a_failed_or_cancelled_call_affects_only_its_checks(files: FileStore) -> None:
    """All checks of a failed call raise; a cancelled check leaves the others; later ones ask again."""
    counted: Any = Counted(files)
    check = TombstoneCheck(counted)
    counted.fails = True
    found = await asyncio.gather(*(check.drops(uploaded()) for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in found] == [DependencyUnavailable] * 3
    counted.fails = False
    one, other = (asyncio.create_task(check.drops(uploaded())) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    assert not await other
    assert not await check.drops(uploaded())
