"""What uploads leave that take more than one request goes when they are over, and not before."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from agents.maintenance.unfinished_uploads import Unfinished
from schemas.values import new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import (
    UNFINISHED,
    ended_upload_key,
    finishing_prefix,
    pieces_prefix,
    staged_key,
    upload_key,
)
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings

HOUR = 3600.0


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """A real store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield found


async def left(files: FileStore) -> set[str]:
    """Return the keys of all that uploads left."""
    return {found.key for root in UNFINISHED for found in [info async for info in files.list(root)]}


async def upload(files: FileStore, *, ends_in_s: float, pieces: int = 2, ended: bool = False) -> set[str]:
    """Write what an upload leaves that can go on for so long, or ended; return the keys."""
    upload_id, ends = new_image_id(), datetime.fromtimestamp(time.time() + ends_in_s, UTC).isoformat()
    keys = {f"{pieces_prefix('anna', upload_id)}{at:020d}" for at in range(pieces)}
    keys |= {f"{finishing_prefix('anna', upload_id)}000001", staged_key("anna", upload_id)}
    for key in keys:
        await files.put(key, b"x", content_type="x/y")
    record = ended_upload_key("anna", upload_id) if ended else upload_key("anna", upload_id)
    await files.put(record, f'{{"expires_at": "{ends}"}}'.encode(), content_type="application/json")
    return keys | {record}


async def sweep(files: FileStore, *, after_s: float, dry_run: bool = False, page_size: int = 100) -> int:
    """Remove what was over an hour before that time from now."""
    walker = Unfinished(files)
    return await walker.remove(older_than=time.time() + after_s - HOUR, page_size=page_size, dry_run=dry_run)


async def test_an_upload_that_was_not_finished_goes_whole_when_its_time_is_up(files: FileStore) -> None:
    """Pieces, staged file, turn and record stay while it can go on; a dry run removes nothing."""
    keys = await upload(files, ends_in_s=24 * HOUR)
    assert await sweep(files, after_s=24.9 * HOUR) == 0
    assert await left(files) == keys
    assert await sweep(files, after_s=25.1 * HOUR, dry_run=True) == len(keys)
    assert await left(files) == keys
    assert await sweep(files, after_s=25.1 * HOUR) == len(keys)
    assert await left(files) == set()


async def test_what_an_upload_that_ended_left_goes_at_once_and_the_note_later(files: FileStore) -> None:
    """Bytes of an image that may be deleted any time do not wait until its upload is forgotten."""
    keys = await upload(files, ends_in_s=24 * HOUR, ended=True)
    note = {key for key in keys if key.startswith("uploaded/")}
    assert await sweep(files, after_s=0) == 0
    assert await sweep(files, after_s=2 * HOUR) == len(keys) - 1
    assert await left(files) == note
    assert await sweep(files, after_s=26 * HOUR) == 1
    assert await left(files) == set()


async def test_a_file_that_was_staged_for_no_upload_goes(files: FileStore) -> None:
    """A form can be used again after its upload ended and was forgotten."""
    key = staged_key("anna", new_image_id())
    await files.put(key, b"x", content_type="x/y")
    assert await sweep(files, after_s=0.9 * HOUR) == 0
    assert await sweep(files, after_s=1.1 * HOUR) == 1
    assert await left(files) == set()


async def test_many_are_walked_page_by_page(files: FileStore) -> None:
    """No sweep looks at more than a page of each kind, and all have gone in the end."""
    for _ in range(4):
        await upload(files, ends_in_s=0, pieces=3)
    walker, rounds = Unfinished(files), 0
    while await left(files):
        assert await walker.remove(older_than=time.time() + HOUR, page_size=3, dry_run=False) <= 3 * len(UNFINISHED)
        rounds += 1
        assert rounds < 20
    assert rounds >= 4
