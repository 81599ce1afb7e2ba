"""The directory store's index of receipts: it finds them without reading their folder."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from schemas.values import new_image_id
from streams.object_store import directory_index
from streams.object_store.directory import DirectoryFiles
from streams.object_store.keys import receipt_key
from streams.object_store.receipts import has_receipt, receipt_keys
from streams.settings import FilesSettings

pytestmark = pytest.mark.skipif(not directory_index._BOOT_ID.exists(), reason="needs Linux's boot id")


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[DirectoryFiles]:
    """Yield a store whose index is complete."""
    files = DirectoryFiles(FilesSettings(directory=folder, bucket="b"))
    await files.open()
    try:
        async with asyncio.timeout(60):
            while not files._index._is_complete():
                await asyncio.sleep(0.001)
        yield files
    finally:
        files.close()


async def write(files: DirectoryFiles, image_id: str, generation: int = 1) -> str:
    key = receipt_key(f"{image_id}.{generation}")
    await files.put(key, b"{}", content_type="application/json")
    return key


async def test_receipts_are_found_without_reading_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cost of `has_receipt` does not grow with the number of receipts, whether there is one or none."""
    async with opened(tmp_path) as files:
        image, other = new_image_id(), new_image_id()
        keys = [await write(files, image, generation) for generation in (1, 2, 10)]
        await write(files, other)

        def walk(*_: object) -> None:
            raise AssertionError("the folder is read")

        monkeypatch.setattr(files, "_walk", walk)
        assert [key async for key in receipt_keys(files, image)] == sorted(keys)
        assert [found.key async for found in files.list(f"jobs/{image}.", after=keys[0])] == sorted(keys)[1:]
        assert await has_receipt(files, other)
        assert not await has_receipt(files, new_image_id())
        await files.delete(keys[1])
        assert [key async for key in receipt_keys(files, image)] == sorted({*keys} - {keys[1]})
        for key in keys:
            await files.delete(key)
        assert not await has_receipt(files, image)


async def test_an_index_is_built_for_the_receipts_of_earlier_versions(tmp_path: Path) -> None:
    """A store without an index, or with one of before the machine's last start, gets a complete one when it opens."""
    async with opened(tmp_path) as files:
        image = new_image_id()
        await write(files, image)
    index = tmp_path / "b" / "index"
    for leftover in (None, "another boot"):
        shutil.rmtree(index)
        if leftover is not None:
            index.mkdir()
            (index / "complete").write_text(leftover)
        async with opened(tmp_path) as files:
            assert await has_receipt(files, image)
            assert (await files.stat(receipt_key(f"{image}.1"))) is not None


async def test_while_the_index_is_incomplete_the_folder_is_read(tmp_path: Path) -> None:
    """Receipts are found before the index is complete, too."""
    async with opened(tmp_path) as files:
        image = new_image_id()
        await write(files, image)
        shutil.rmtree(tmp_path / "b" / "index")
        files._index._complete = False
        assert await has_receipt(files, image)


async def test_an_entry_without_its_object_is_ignored(tmp_path: Path) -> None:
    """A writer that crashed before it published its object leaves only an entry."""
    async with opened(tmp_path) as files:
        image = new_image_id()
        files._index.add(receipt_key(f"{image}.1"))
        assert not await has_receipt(files, image)
