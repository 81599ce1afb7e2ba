"""Dead letters of deleted images: marked as erased, returned without content, never replayed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from schemas.values import ErrorCode, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.retries import dead_letters
from streams.retries.dead_letters import ERASED, DeadLetter, DeadLetterStore, Failure, Selection, dead_letter
from streams.settings import FilesSettings, KafkaSettings
from streams.testing.memory_log import MemoryLog
from tests.support.stage_kit import message, uploaded

SECRET = "holiday-in-rome.jpg"


@dataclass
class Letters:
    """A store over topics in memory, with a letter of a deleted and of a present image."""

    store: DeadLetterStore
    log: MemoryLog
    files: FileStore
    deleted: str
    present: str

    async def listed(self, *, handled: bool = False) -> list[DeadLetter]:
        return [letter async for letter in self.store.letters("sanitizer", Selection(), handled=handled)]


@pytest.fixture
async def letters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Letters]:
    """Two letters in the sanitizer's dead topic; then one of the images is deleted."""
    log = MemoryLog()
    monkeypatch.setattr(dead_letters, "read_topic", lambda _kafka, topic: log.records(topic))
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        deleted, present = new_image_id(), new_image_id()
        for image_id in (deleted, present):
            record = MemoryLog().append(message(uploaded(image_id, filename=SECRET)))
            failure = Failure(ErrorCode.INTERNAL_ERROR, ValueError(SECRET), 1, retriable=False, first_failure="now")
            log.append(dead_letter(record, "sanitizer", "1", failure))
        assert await Tombstones(files).make_certain(deleted, "default", 2) is not None
        yield Letters(DeadLetterStore(KafkaSettings(), files, log), log, files, deleted, present)


async def test_letters_of_deleted_images_are_not_listed(letters: Letters) -> None:
    """The list of open letters omits them even before they are marked as erased."""
    assert [letter.image_id for letter in await letters.listed()] == [letters.present]


async def test_their_content_is_never_returned(letters: Letters) -> None:
    """The list of all letters contains the letter and its error code, without key, body or message."""
    shown = {letter.image_id: letter for letter in await letters.listed(handled=True)}
    gone, present = shown[letters.deleted], shown[letters.present]
    assert (gone.handled, gone.code) == (ERASED, "internal-error")
    assert (gone.record.value, gone.record.key, gone.message) == (None, None, "")
    assert SECRET.encode() not in b"".join(value for _, value in gone.record.headers)
    assert present.handled is None
    assert SECRET.encode() in (present.record.value or b"")


async def test_they_are_never_replayed_nor_discarded(letters: Letters) -> None:
    """Replays and discards skip them, with and without a filter."""
    assert await letters.store.discard("sanitizer", Selection(image_id=letters.deleted), reason="x", dry_run=False) == 0
    assert await letters.store.replay("sanitizer", Selection(image_id=letters.deleted), dry_run=False) == 0
    assert await letters.store.replay("sanitizer", Selection(), dry_run=False, per_second=1000) == 1
    replayed = [r for name in letters.log.topics if name != "sanitizer.dead" for r in letters.log.records(name)]
    assert [record.header("ce_subject") for record in replayed] == [letters.present]


async def test_erasing_them_is_recorded_once(letters: Letters) -> None:
    """Erasing records the action without content; a repeat changes nothing."""
    for _ in range(2):
        assert await letters.store.erase({letters.deleted}, ["sanitizer", "ocr"]) == {letters.deleted: 1}
    marks = [found.key async for found in letters.files.list("dead-letters/")]
    assert len(marks) == 1
    body = await letters.files.get(marks[0])
    assert b'"act": "erased"' in body
    assert SECRET.encode() not in body
    assert [letter.handled for letter in await letters.listed(handled=True)].count(ERASED) == 1
