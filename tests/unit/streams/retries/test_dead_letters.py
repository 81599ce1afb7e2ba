"""Dead letters of deleted images: closed, emptied, never replayed."""

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
class Post:
    """An office whose topics are in memory, with a letter of one deleted and one living image."""

    office: DeadLetterStore
    log: MemoryLog
    files: FileStore
    deleted: str
    living: str

    async def letters(self, *, handled: bool = False) -> list[DeadLetter]:
        return [letter async for letter in self.office.letters("sanitizer", Selection(), handled=handled)]


@pytest.fixture
async def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Post]:
    """Two letters in the sanitizer's dead topic; then one of the images is deleted."""
    log = MemoryLog()
    monkeypatch.setattr(dead_letters, "read_topic", lambda _kafka, topic: log.records(topic))
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        deleted, living = new_image_id(), new_image_id()
        for image_id in (deleted, living):
            record = MemoryLog().append(message(uploaded(image_id, filename=SECRET)))
            failure = Failure(ErrorCode.INTERNAL_ERROR, ValueError(SECRET), 1, retriable=False, first_failure="now")
            log.append(dead_letter(record, "sanitizer", "1", failure))
        assert await Tombstones(files).make_certain(deleted, "default", 2) is not None
        yield Post(DeadLetterStore(KafkaSettings(), files, log), log, files, deleted, living)


async def test_letters_of_deleted_images_are_not_listed(post: Post) -> None:
    """The list of what is to be dealt with leaves out what was deleted, without anybody having marked it."""
    assert [letter.image_id for letter in await post.letters()] == [post.living]


async def test_nobody_sees_what_is_in_them(post: Post) -> None:
    """Asked for everything, the office says that the letter is there and how it died, and nothing of its contents."""
    shown = {letter.image_id: letter for letter in await post.letters(handled=True)}
    gone, living = shown[post.deleted], shown[post.living]
    assert (gone.handled, gone.code) == (ERASED, "internal-error")
    assert (gone.record.value, gone.record.key, gone.message) == (None, None, "")
    assert SECRET.encode() not in b"".join(value for _, value in gone.record.headers)
    assert living.handled is None
    assert SECRET.encode() in (living.record.value or b"")


async def test_they_are_never_replayed_nor_discarded(post: Post) -> None:
    """Whoever replays or discards everything, or names the image, leaves the letter of a deleted image alone."""
    assert await post.office.discard("sanitizer", Selection(image_id=post.deleted), reason="x", dry_run=False) == 0
    assert await post.office.replay("sanitizer", Selection(image_id=post.deleted), dry_run=False) == 0
    assert await post.office.replay("sanitizer", Selection(), dry_run=False, per_second=1000) == 1
    replayed = [r for name in post.log.topics if name != "sanitizer.dead" for r in post.log.records(name)]
    assert [record.header("ce_subject") for record in replayed] == [post.living]


async def test_closing_them_leaves_a_mark_once(post: Post) -> None:
    """The janitor closes the letters of deleted images for good, with a mark that names no contents; twice is once."""
    for _ in range(2):
        assert await post.office.erase({post.deleted}, ["sanitizer", "ocr"]) == {post.deleted: 1}
    marks = [found.key async for found in post.files.list("dead-letters/")]
    assert len(marks) == 1
    body = await post.files.get(marks[0])
    assert b'"act": "erased"' in body
    assert SECRET.encode() not in body
    assert [letter.handled for letter in await post.letters(handled=True)].count(ERASED) == 1
