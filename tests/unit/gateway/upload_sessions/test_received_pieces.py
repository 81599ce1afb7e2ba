"""What is known of an upload's received pieces: each part costs a listing of what came after the last known piece."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from gateway.upload_sessions.store import UploadKind, UploadRecord, Uploads
from schemas.values import Owner
from streams.object_store.factory import open_files
from streams.object_store.keys import pieces_prefix
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.settings import FilesSettings
from tests.support.gateway_components import settings

ANNA = Owner("anna")


class CountingFiles:
    """A directory store that counts the objects it lists."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self.listed = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    async def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        async for found in self._files.list(prefix, after=after):
            self.listed += 1
            yield found


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[Any]:
    """A store that counts listed objects."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield CountingFiles(store)


@pytest.fixture
def part(tmp_path: Path) -> Path:
    """A piece of three bytes."""
    path = tmp_path / "part"
    path.write_bytes(b"abc")
    return path


def begun(uploads: Uploads) -> UploadRecord:
    return uploads.new(ANNA, UploadKind.RESUMABLE)


async def test_many_parts_cost_a_listing_of_few_objects_each(files: Any, part: Path) -> None:
    """The number of listed objects grows with the number of parts, not with its square."""
    uploads = Uploads(settings(), files)
    record = begun(uploads)
    for number in range(60):
        assert await uploads.offset(record) == 3 * number
        await uploads.add(record, 3 * number, part)
    assert files.listed <= 2 * 60
    assert await uploads.offset(record) == 180


async def test_pieces_of_one_request_are_not_listed_again(files: Any, part: Path) -> None:
    """Within a request each piece follows the one just stored."""
    uploads = Uploads(settings(), files)
    record = begun(uploads)
    for number in range(60):
        await uploads.add(record, 3 * number, part)
    assert files.listed == 0
    assert await uploads.offset(record) == 180


async def test_pieces_that_another_gateway_stored_are_found(files: Any, part: Path) -> None:
    """Two gateways that alternate know the same offset, also after one without pieces asked early."""
    one, other = Uploads(settings(), files), Uploads(settings(), files)
    record = begun(one)
    for number in range(6):
        assert (await one.offset(record), await other.offset(record)) == (3 * number, 3 * number)
        await (one, other)[number % 2].add(record, 3 * number, part)
    assert (await one.offset(record), await other.offset(record)) == (18, 18)


async def test_pieces_that_were_removed_are_not_reported(files: Any, part: Path) -> None:
    """A gateway that knew pieces of which a removal left none, or only a gap, lists them again."""
    one, other = Uploads(settings(), files), Uploads(settings(), files)
    record = begun(one)
    for number in range(3):
        await one.add(record, 3 * number, part)
    prefix = pieces_prefix(ANNA, record.upload_id)
    await files.delete(f"{prefix}{6:020d}")
    assert await one.offset(record) == 6
    await other.remove(record)
    assert await one.offset(record) == 0
