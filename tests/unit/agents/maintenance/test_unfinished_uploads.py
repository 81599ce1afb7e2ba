"""Objects of uploads in several requests are removed after the upload has ended, and not before."""

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
    """Yield a file store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield found


async def left(files: FileStore) -> set[str]:
    """Return the keys of all objects that uploads left."""
    return {found.key for root in UNFINISHED for found in [info async for info in files.list(root)]}


async def upload(files: FileStore, *, ends_in_s: float, pieces: int = 2, ended: bool = False) -> set[str]:
    """Write the objects of an upload that expires or ended at that time; return the keys."""
    upload_id, ends = new_image_id(), datetime.fromtimestamp(time.time() + ends_in_s, UTC).isoformat()
    keys = {f"{pieces_prefix('anna', upload_id)}{at:020d}" for at in range(pieces)}
    keys |= {f"{finishing_prefix('anna', upload_id)}000001", staged_key("anna", upload_id)}
    for key in keys:
        await files.put(key, b"x", content_type="x/y")
    record = ended_upload_key("anna", upload_id) if ended else upload_key("anna", upload_id)
    await files.put(record, f'{{"expires_at": "{ends}"}}'.encode(), content_type="application/json")
    return keys | {record}


async def sweep(files: FileStore, *, after_s: float, dry_run: bool = False, page_size: int = 100) -> int:
    """Remove the objects of uploads that ended an hour before that time from now."""
    walker = Unfinished(files)
    return await walker.remove(older_than=time.time() + after_s - HOUR, page_size=page_size, dry_run=dry_run)


async def test_an_expired_upload_is_removed_whole(files: FileStore) -> None:
    """Pieces, staged file, lease and record stay until the upload expires; a dry run removes nothing."""
    keys = await upload(files, ends_in_s=24 * HOUR)
    assert await sweep(files, after_s=24.9 * HOUR) == 0
    assert await left(files) == keys
    assert await sweep(files, after_s=25.1 * HOUR, dry_run=True) == len(keys)
    assert await left(files) == keys
    assert await sweep(files, after_s=25.1 * HOUR) == len(keys)
    assert await left(files) == set()


async def test_an_ended_uploads_objects_are_removed_before_its_note(files: FileStore) -> None:
    """Bytes of an image that may be deleted at any time are removed before the note of the upload's end expires."""
    keys = await upload(files, ends_in_s=24 * HOUR, ended=True)
    note = {key for key in keys if key.startswith("uploaded/")}
    assert await sweep(files, after_s=0) == 0
    assert await sweep(files, after_s=2 * HOUR) == len(keys) - 1
    assert await left(files) == note
    assert await sweep(files, after_s=26 * HOUR) == 1
    assert await left(files) == set()


async def test_a_staged_file_without_an_upload_is_removed(files: FileStore) -> None:
    """A form can be used again after its upload ended and its note was removed."""
    key = staged_key("anna", new_image_id())
    await files.put(key, b"x", content_type="x/y")
    assert await sweep(files, after_s=0.9 * HOUR) == 0
    assert await sweep(files, after_s=1.1 * HOUR) == 1
    assert await left(files) == set()


async def test_many_uploads_are_scanned_page_by_page(files: FileStore) -> None:
    """Each sweep examines one page of each kind; successive sweeps remove everything."""
    for _ in range(4):
        await upload(files, ends_in_s=0, pieces=3)
    walker, rounds = Unfinished(files), 0
    while await left(files):
        assert await walker.remove(older_than=time.time() + HOUR, page_size=3, dry_run=False) <= 3 * len(UNFINISHED)
        rounds += 1
        assert rounds < 20
    assert rounds >= 4
