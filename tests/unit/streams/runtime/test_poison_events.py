"""Crash markers: exactly the event that crashes its worker is identified."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from schemas.events.envelope import Event, Record
from streams.concurrency.readers_writer_lock import ReadWriteLock
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.runtime.poison_events import PoisonEventTracker, Verdict, poison_event_tracker
from streams.settings import FilesSettings
from streams.stage import StageSettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import Seen, bench, echo_stage, message, uploaded


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield store


def record(offset: int) -> Record:
    """Return a record with nothing but a topic, partition and offset."""
    return Record("image.uploaded", 0, offset, None, None)


def test_events_in_flight_at_a_crash_are_suspects_and_finished_ones_are_not(tmp_path: Path) -> None:
    """After one crash no event is poison: suspects are processed alone."""
    first = PoisonEventTracker(tmp_path)
    for offset in (1, 2, 3):
        first.begin(record(offset))
    first.end(record(2))
    second = PoisonEventTracker(tmp_path)
    assert [second.verdict(record(n)) for n in (1, 2, 3)] == [Verdict.ISOLATED, Verdict.NORMAL, Verdict.ISOLATED]


def test_only_the_event_processed_alone_at_the_second_crash_is_poison(tmp_path: Path) -> None:
    """The other suspects of the first crash are not counted for the second."""
    first = PoisonEventTracker(tmp_path)
    for offset in (1, 2, 3):
        first.begin(record(offset))
    second = PoisonEventTracker(tmp_path)
    second.begin(record(1))
    second.end(record(1))
    second.begin(record(2))
    third = PoisonEventTracker(tmp_path)
    assert [third.verdict(record(n)) for n in (1, 2, 3)] == [Verdict.NORMAL, Verdict.POISON, Verdict.ISOLATED]


def test_a_process_that_exits_for_another_reason_leaves_no_suspects(tmp_path: Path) -> None:
    """An unavailable Kafka must not lead to dead letters, however often workers exit because of it."""
    markers = PoisonEventTracker(tmp_path)
    markers.begin(record(1))
    markers.clear()
    assert PoisonEventTracker(tmp_path).suspects() == 0


def test_two_workers_of_one_machine_do_not_share_a_slot(tmp_path: Path) -> None:
    """Events in flight in one worker are not suspects of another."""
    with poison_event_tracker(tmp_path, "ocr", limit=2) as first:
        first.begin(record(1))
        with poison_event_tracker(tmp_path, "ocr", limit=2) as second:
            assert second.suspects() == 0
    with poison_event_tracker(tmp_path, "ocr", limit=2) as successor:
        assert successor.suspects() == 1


async def test_a_poison_event_is_dead_lettered_unprocessed_and_the_others_are_processed(
    files: FileStore, tmp_path: Path
) -> None:
    """The stage does not process it; it is stored byte for byte with its own code, and its image fails."""
    markers = PoisonEventTracker(tmp_path, limit=2)
    log = MemoryLog(partitions=1)
    await log.deliver([message(uploaded()) for _ in range(5)])
    for _ in range(2):
        markers.begin(record(3))
        markers = PoisonEventTracker(tmp_path, limit=2)
    seen = Seen()
    stage = echo_stage(seen)
    on = bench(stage, files, log, markers=markers)
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    await worker.until_idle()
    await worker.stop()
    (letter,) = log.records("sanitizer.dead")
    assert letter.header("dlq.error.code") == "worker-crashed"
    assert letter.value == log.records("image.uploaded")[3].value
    assert len(seen.images) == 4
    assert len(log.records("image.facts")) == 5
    assert not list(tmp_path.glob("*.at-work"))


async def test_a_suspect_is_processed_alone(files: FileStore, tmp_path: Path) -> None:
    """No other event runs while a suspect does, so that a second crash identifies it."""
    PoisonEventTracker(tmp_path).begin(record(4))
    markers = PoisonEventTracker(tmp_path)
    log = MemoryLog(partitions=1)
    await log.deliver([message(uploaded(generation=1 + (n == 4))) for n in range(12)])
    seen = Seen()
    concurrent: list[int] = []

    def act(event: Event) -> None:
        if event.generation == 2:
            concurrent.append(seen.running)

    stage = echo_stage(seen, seconds=0.005, act=act)
    on = bench(stage, files, log, markers=markers, settings=StageSettings(concurrency=6))
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    await worker.until_idle()
    await worker.stop()
    assert concurrent == [1]
    assert seen.most > 1


async def test_the_exclusive_lock_excludes_all_others() -> None:
    """Shared sections overlap, exclusive ones never do, and every waiter gets the lock."""
    lock = ReadWriteLock()
    inside: set[str] = set()
    overlaps: list[frozenset[str]] = []

    async def enter(name: str, *, alone: bool) -> None:
        async with lock.exclusive() if alone else lock.shared():
            inside.add(name)
            await asyncio.sleep(0.001)
            overlaps.append(frozenset(inside))
            inside.discard(name)

    async with asyncio.timeout(10):
        await asyncio.gather(*(enter(f"{'alone' if n % 5 == 0 else 'with'}{n}", alone=n % 5 == 0) for n in range(30)))
    assert all(len(group) == 1 for group in overlaps if any(name.startswith("alone") for name in group))
    assert max(map(len, overlaps)) > 1


def test_markers_are_slots_of_one_file(tmp_path: Path) -> None:
    """No file is created per event, slots are used again, and what is in a slot no event set is no suspect."""
    markers = PoisonEventTracker(tmp_path)
    files = sorted(tmp_path.iterdir())
    for offset in range(50):
        markers.begin(record(10**9 + offset))
    for offset in range(50):
        markers.end(record(10**9 + offset))
    size = files[0].stat().st_size
    for offset in range(40):
        markers.begin(record(offset))
    assert sorted(tmp_path.iterdir()) == files
    assert files[0].stat().st_size == size
    successor = PoisonEventTracker(tmp_path)
    assert successor.suspects() == 40
    assert {successor.verdict(record(offset)) for offset in range(40)} == {Verdict.ISOLATED}


def test_markers_of_an_earlier_version_are_read(tmp_path: Path) -> None:
    """A file per event, with its number of crashes: the events are suspects or poison, and the files are removed."""
    for offset, crashes in ((1, ""), (2, "1")):
        (tmp_path / f"image.uploaded_0_{offset}.at-work").write_text(crashes)
    markers = PoisonEventTracker(tmp_path)
    assert [markers.verdict(record(n)) for n in (1, 2, 3)] == [Verdict.ISOLATED, Verdict.POISON, Verdict.NORMAL]
    markers.begin(record(1))
    markers.end(record(1))
    markers.clear()
    assert PoisonEventTracker(tmp_path).suspects() == 0
