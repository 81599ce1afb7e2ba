"""Fills the disk under a read model: `python -m tests.faults.read_model_on_a_small_disk FOLDER [limit]`.

FOLDER is a small disk; with `limit` it is none, and files may not grow instead (RLIMIT_FSIZE). Prints a line for each
step.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from contextlib import suppress
from pathlib import Path

from schemas.values import new_image_id
from streams.errors import DependencyUnavailable
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Filters
from streams.settings import QdrantSettings
from tests.support.read_models import added, merge, stub, vector

BULK = "x" * 200_000  # of a key that is not searched
MOST_WRITES = 5_000
NEARLY_FULL_MB = 75  # little more than the engine must have
CHECKED_AGAIN_S = 1.0  # after which the free space is looked at again
MAX_FILE = 2**20  # bytes; the engine's next file of its log is larger
FLUSHED_S = 6.0  # after which the engine has flushed


def say(*line: object) -> None:
    """Print a line."""
    print(*line, flush=True)  # noqa: T201 - the parent process reads it


class SmallDisk:
    """A disk of its own, filled by another file."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ballast = folder / "ballast"

    def fill(self, *, left_mb: int) -> None:
        found = os.statvfs(self._folder)
        size = found.f_bavail * found.f_frsize - left_mb * 2**20
        with self._ballast.open("wb", buffering=0) as ballast, suppress(OSError):
            for _ in range(max(0, size) >> 12):
                ballast.write(bytes(4096))

    def free(self) -> None:
        self._ballast.unlink(missing_ok=True)


class LimitedFiles:
    """Files that may not grow."""

    def fill(self, *, left_mb: int) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (MAX_FILE, resource.RLIM_INFINITY))

    def free(self) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


async def until_refused(model: ReadModel, done: dict[str, str]) -> str:
    """Write until the disk is full; note what was acknowledged, and return the error's sentence."""
    for number in range(MOST_WRITES):
        image_id, text = new_image_id(), f"harbour number{number}"
        try:
            await model.begin(stub(image_id))
            await merge(model, image_id, 1, {"text": text, "error_message": BULK}, vector=vector(number))
        except DependencyUnavailable as error:
            return str(error)
        done[image_id] = text
    return "never"


async def check(model: ReadModel, done: dict[str, str]) -> None:
    """Assert that all reads work, and that everything acknowledged is there."""
    await model.check()
    for image_id, text in done.items():
        known = await model.get(image_id)
        assert known is not None, f"{image_id} is missing"
        assert known.text == text, f"{image_id} has another text"
        assert await model.vector_of(image_id) is not None, f"{image_id} has no vector"
    newest = max(done)
    page = await model.page("anna", Filters(), limit=10_000)
    assert {record.image_id for record in page} >= done.keys(), "a listing lacks images"
    word = done[newest].rsplit(" ", 1)[1]
    assert newest in {hit.record.image_id for hit in await model.search_words("anna", word, limit=5)}
    assert await model.search_vector("anna", vector(1), limit=3)


async def run(folder: Path, disk: SmallDisk | LimitedFiles) -> None:
    """Fill the disk by writes, then by another file to the last byte; start on the full disk; free it."""
    settings = QdrantSettings(path=folder / "qdrant", timeout_s=60)
    done: dict[str, str] = {}
    async with open_read_model(settings) as model:
        done[await added(model, seed=0, text="before harbour0")] = "before harbour0"
        disk.fill(left_mb=NEARLY_FULL_MB)
        say("refused:", await until_refused(model, done))
        await check(model, done)
        say("read")
        disk.free()
        await asyncio.sleep(CHECKED_AGAIN_S)
        done[await added(model, seed=1, text="after harbour1")] = "after harbour1"
        say("written")
        # With pages in memory that have no place on the disk yet, the engine's flush would end the process (SIGBUS):
        # against others who take the last byte within seconds of a write, no free space kept helps.
        await asyncio.sleep(FLUSHED_S)
        disk.fill(left_mb=0)
        say("refused:", await until_refused(model, done))
        await check(model, done)
        say("read")
    try:
        async with open_read_model(settings) as model:
            await check(model, done)
            say("read")
    except DependencyUnavailable as error:
        say("refused:", error)
    disk.free()
    async with open_read_model(settings) as model:
        await check(model, done)
        done[await added(model, seed=2, text="again harbour2")] = "again harbour2"
        say("written")
    async with open_read_model(settings) as model:
        await check(model, done)
        say("whole")


if __name__ == "__main__":
    where = Path(sys.argv[1])
    asyncio.run(run(where, LimitedFiles() if sys.argv[2:] == ["limit"] else SmallDisk(where)))
