"""Crash markers: the event that kills its worker is found, and only that one."""

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
    """Return a record of which only the place counts."""
    return Record("image.uploaded", 0, offset, None, None)


def test_what_was_in_flight_at_a_death_is_suspect_and_what_was_done_is_not(tmp_path: Path) -> None:
    """One death makes nobody guilty: suspects are worked on alone."""
    first = PoisonEventTracker(tmp_path)
    for offset in (1, 2, 3):
        first.begin(record(offset))
    first.end(record(2))
    second = PoisonEventTracker(tmp_path)
    assert [second.verdict(record(n)) for n in (1, 2, 3)] == [Verdict.ALONE, Verdict.FREE, Verdict.ALONE]


def test_only_the_one_that_was_alone_at_the_second_death_is_guilty(tmp_path: Path) -> None:
    """The other suspects of the first death are never blamed for the second."""
    first = PoisonEventTracker(tmp_path)
    for offset in (1, 2, 3):
        first.begin(record(offset))
    second = PoisonEventTracker(tmp_path)
    second.begin(record(1))
    second.end(record(1))
    second.begin(record(2))
    third = PoisonEventTracker(tmp_path)
    assert [third.verdict(record(n)) for n in (1, 2, 3)] == [Verdict.FREE, Verdict.GUILTY, Verdict.ALONE]


def test_a_process_that_leaves_for_its_own_reasons_blames_nobody(tmp_path: Path) -> None:
    """A Kafka that is away must not turn events into dead letters, however often workers end over it."""
    markers = PoisonEventTracker(tmp_path)
    markers.begin(record(1))
    markers.forgive()
    assert PoisonEventTracker(tmp_path).suspects() == 0


def test_two_workers_of_one_machine_do_not_share_a_slot(tmp_path: Path) -> None:
    """A living worker's events are not suspects of another's."""
    with poison_event_tracker(tmp_path, "ocr", limit=2) as first:
        first.begin(record(1))
        with poison_event_tracker(tmp_path, "ocr", limit=2) as second:
            assert second.suspects() == 0
    with poison_event_tracker(tmp_path, "ocr", limit=2) as heir:
        assert heir.suspects() == 1


async def test_the_guilty_event_becomes_a_dead_letter_untouched_and_the_rest_goes_on(
    files: FileStore, tmp_path: Path
) -> None:
    """The stage never sees it again; it is kept byte for byte with its own code, and its image ends failed."""
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


async def test_a_suspect_is_worked_on_with_nothing_beside_it(files: FileStore, tmp_path: Path) -> None:
    """If it kills the worker again, there is no doubt about which it was."""
    PoisonEventTracker(tmp_path).begin(record(4))
    markers = PoisonEventTracker(tmp_path)
    log = MemoryLog(partitions=1)
    await log.deliver([message(uploaded(generation=1 + (n == 4))) for n in range(12)])
    seen = Seen()
    company: list[int] = []

    def act(event: Event) -> None:
        if event.generation == 2:
            company.append(seen.running)

    stage = echo_stage(seen, seconds=0.005, act=act)
    on = bench(stage, files, log, markers=markers, settings=StageSettings(concurrency=6))
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    await worker.until_idle()
    await worker.stop()
    assert company == [1]
    assert seen.most > 1


async def test_turns_keep_everybody_out_while_one_is_alone() -> None:
    """Together is many at once; alone is one, and nobody waits for ever."""
    lock = ReadWriteLock()
    inside: set[str] = set()
    met: list[frozenset[str]] = []

    async def enter(name: str, *, alone: bool) -> None:
        async with lock.exclusive() if alone else lock.shared():
            inside.add(name)
            await asyncio.sleep(0.001)
            met.append(frozenset(inside))
            inside.discard(name)

    async with asyncio.timeout(10):
        await asyncio.gather(*(enter(f"{'alone' if n % 5 == 0 else 'with'}{n}", alone=n % 5 == 0) for n in range(30)))
    assert all(len(group) == 1 for group in met if any(name.startswith("alone") for name in group))
    assert max(map(len, met)) > 1
