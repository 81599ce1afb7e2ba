"""Quotas of owners with very many objects: no request waits for their count, and a restart refuses nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from gateway.http.problems import Problem
from gateway.limits import quotas as module
from gateway.limits.quotas import Quotas, Usage
from gateway.limits.settings import QuotaSettings
from schemas.values import Owner
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.settings import FilesSettings

ANNA = Owner("anna")


class SlowFiles:
    """A directory store in which an owner has 1 000 originals, whose listing stops after half of them until released.

    While `broken` is set, a listing fails instead.
    """

    def __init__(self, files: FileStore) -> None:
        self.bucket = files.bucket
        self.get, self.put = files.get, files.put
        self.released = asyncio.Event()
        self.broken = False

    async def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        if self.broken:
            raise DependencyUnavailable("no store")
        for number in range(1000):
            if number == 500 and prefix.startswith("originals/"):
                await self.released.wait()
            sha256 = f"{number:064d}"
            key = f"{prefix}{sha256[:2]}/{sha256}" if prefix.startswith("originals/") else f"{prefix}{sha256}/image"
            yield ObjectInfo(key, 10, "", "", 0.0)


@pytest.fixture
async def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SlowFiles]:
    """A store whose counts are long."""
    monkeypatch.setattr(module, "COUNT_WAIT_S", 0.01)
    monkeypatch.setattr(module, "KEEP_ABOVE_S", 0.0)
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield SlowFiles(store)


def quotas(files: SlowFiles, images: int) -> Quotas:
    store: FileStore = files  # type: ignore[assignment]
    return Quotas(QuotaSettings(images=images), store)


async def counted(found: Quotas) -> Usage:
    """Wait for the count."""
    async with asyncio.timeout(60):
        while (usage := await found.usage(ANNA)) is None:
            await asyncio.sleep(0.001)
    return usage


async def test_an_upload_does_not_wait_for_the_first_count(files: SlowFiles) -> None:
    """It is admitted by what has been counted, usage is unknown meanwhile, and then the quota applies."""
    found = quotas(files, images=900)
    async with found.room(ANNA):
        pass
    assert await found.usage(ANNA) is None
    files.released.set()
    assert (await counted(found)).images >= 1000
    with pytest.raises(Problem, match="quota"):
        await found.check(ANNA)


async def test_what_has_been_counted_is_refused_at_once(files: SlowFiles) -> None:
    """An owner whose half counted objects exceed the quota already is refused."""
    found = quotas(files, images=400)
    with pytest.raises(Problem, match="quota"):
        async with asyncio.timeout(60):
            while True:
                await found.check(ANNA)


async def test_a_restarted_gateway_begins_with_the_kept_sum(files: SlowFiles) -> None:
    """It counts again in the background: uploads neither wait for that nor are refused because of it."""
    files.released.set()
    assert await counted(quotas(files, images=2000)) == Usage(1000, 10_000)
    async with asyncio.timeout(60):
        while await quotas(files, images=2000)._kept(ANNA) is None:
            await asyncio.sleep(0.001)
    files.released.clear()
    restarted = quotas(files, images=1001)
    assert await restarted.usage(ANNA) == Usage(1000, 10_000)
    async with restarted.room(ANNA):
        pass
    with pytest.raises(Problem, match="1001 of 1001"):
        await restarted.check(ANNA)


async def test_a_store_that_cannot_be_listed_is_unavailable(files: SlowFiles) -> None:
    """Without any sum a failed count is an error, not an empty account."""
    files.broken = True
    with pytest.raises(DependencyUnavailable):
        await quotas(files, images=1).check(ANNA)
