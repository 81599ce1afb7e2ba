"""Full disks and used-up quotas: whoever meets one says that a dependency is away, keeps what is whole, and goes on."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from schemas.events.envelope import Event, Record
from streams import topics
from streams.concurrency.circuit_breaker import Breakers
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.runtime.poison_events import PoisonEventTracker, Verdict
from streams.settings import BreakerSettings, FilesSettings, RetrySettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.gateway_components import FaultyFiles, Sink, StubReadiness, client_of, refused, settings
from tests.support.stage_kit import bench, echo_stage, message, uploaded

JPEG = b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(400_000)


class SmallDisk:
    """A folder whose disk can be filled: a real one where this process may mount, else one that says it is full."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self._patch = patch
        folder.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2m,nr_inodes=200", "tmpfs", str(folder)]
        try:
            self.real = subprocess.run(mount, capture_output=True, check=False, timeout=60).returncode == 0
        except OSError:
            self.real = False

    def fill(self) -> None:
        """Leave no room."""
        if not self.real:
            self._pretend()
            return
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        with suppress(OSError):
            for number in range(1000):
                (self.folder / f"ballast-{number}").touch()

    def free(self) -> None:
        """Make room again."""
        self._patch.undo()
        for ballast in self.folder.glob("ballast*"):
            ballast.unlink()

    def close(self) -> None:
        """Let the disk go."""
        if self.real:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=True, timeout=60)

    def _pretend(self) -> None:
        of_io, of_os = io.open, os.open

        def no_room(path: Any) -> None:
            if isinstance(path, str | Path) and self.folder in Path(path).parents and not Path(path).exists():
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

        def io_open(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if mode[0] in "wxa":
                no_room(path)
            return of_io(path, mode, *more, **named)

        def os_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                no_room(path)
            return of_os(path, flags, *more, **named)

        self._patch.setattr(io, "open", io_open)
        self._patch.setattr(os, "open", os_open)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A disk with room for two megabytes."""
    small = SmallDisk(tmp_path / "disk", monkeypatch)
    try:
        yield small
    finally:
        small.free()
        small.close()


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder with room."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield store


async def test_a_store_without_room_reads_and_removes(disk: SmallDisk) -> None:
    """Writes are refused, soon without being tried, while what is there can be read and removed; then there is room."""
    breakers = Breakers(BreakerSettings(open_s=600))
    async with open_files(FilesSettings(directory=disk.folder, bucket="b"), breakers) as store:
        await store.put("k", b"before", content_type="x/y")
        await store.put("old", b"1", content_type="x/y")
        disk.fill()
        for _ in range(5):
            with pytest.raises(DependencyUnavailable):
                await store.put("k", bytes(500_000), content_type="x/y")
        assert breakers.open_reasons() == ["object-store-writes: circuit breaker open for 600 s"]
        with pytest.raises(DependencyUnavailable, match="circuit breaker open"):
            await store.put("k", b"1", content_type="x/y")
        with pytest.raises(DependencyUnavailable):
            await store.check()
        assert await store.get("k") == b"before"
        await store.delete("old")
        assert await store.stat("old") is None
        disk.free()
        await store.check()
        assert not breakers.open_reasons()
        await store.put("k", b"after", content_type="x/y")
        assert await store.get("k") == b"after"
        assert not list((disk.folder / "b" / "tmp").iterdir())


async def test_work_goes_on_without_room_for_crash_markers(disk: SmallDisk, files: FileStore) -> None:
    """A full disk under the crash markers ends no worker: events are worked on without a mark."""
    markers = PoisonEventTracker(disk.folder)
    disk.fill()
    markers.begin(Record("image.uploaded", 0, 1, None, None))
    markers.end(Record("image.uploaded", 0, 1, None, None))
    log = MemoryLog()
    stage = echo_stage()
    on = bench(stage, files, log, markers=markers)
    await log.deliver([message(uploaded()) for _ in range(10)])
    worker = MemoryWorker(log, stage.name, [topic.name for topic in stage.consumes], on.intake)
    await worker.until_idle()
    assert await worker.stop()
    assert not on.fatal
    assert len(log.records("image.facts")) == 10
    disk.free()
    markers.begin(Record("image.uploaded", 0, 2, None, None))
    assert PoisonEventTracker(disk.folder).verdict(Record("image.uploaded", 0, 2, None, None)) is Verdict.ISOLATED


async def test_a_gateway_whose_spool_is_full_accepts_nothing(disk: SmallDisk, files: FileStore) -> None:
    """An upload that finds no room to wait in is answered 503 and leaves no trace; with room again it is accepted."""
    frail, sink = FaultyFiles(files), Sink()
    app = ingest_app(
        settings(spool_dir=disk.folder), IngestComponents(files=frail, events=sink, readiness=StubReadiness())
    )
    async with client_of(app) as client:
        disk.fill()
        answer = await client.post("/api/v1/images/upload", files={"file": ("a", JPEG)})
        refused(answer, 503, "dependency-unavailable")
        assert (sink.sent, await frail.objects()) == ([], {})
        disk.free()
        assert not list(disk.folder.iterdir())
        assert (await client.post("/api/v1/images/upload", files={"file": ("a", JPEG)})).status_code == 202


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_stage_without_room_tries_again_later(files: FileStore, code: int) -> None:
    """When a stage's own temporary files find no room, the event waits; it is nobody's bug and no dead letter."""

    def act(_event: Event) -> None:
        raise OSError(code, os.strerror(code))

    log, stage = MemoryLog(), echo_stage(act=act)
    on = bench(stage, files, log, retry=RetrySettings(in_place_tries=1))
    await log.deliver([message(uploaded())])
    worker = MemoryWorker(log, stage.name, [topic.name for topic in stage.consumes], on.intake)
    await worker.until_idle()
    assert await worker.stop()
    assert len(log.records(topics.delay_topic("sanitizer", "30s"))) == 1
    assert not log.records(topics.dead_topic("sanitizer"))


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (507, "XMinioStorageFull"),
        (400, "XMinioAdminBucketQuotaExceeded"),
        (403, "QuotaExceeded"),
        (503, "SlowDown"),
        (507, "Anything"),
    ],
)
async def test_an_s3_store_without_room_is_away(status: int, code: str) -> None:
    """A bucket over its quota and a full disk under a server are a store that is away, not a wrong request."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = f"<Error><Code>{code}</Code><Message>no room</Message></Error>".encode()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if head.startswith(b"HEAD"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
                    continue
                lines = head.lower().split(b"\r\n")
                length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
                await reader.readexactly(length)
                start = f"HTTP/1.1 {status} No\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
                writer.write(start.encode() + body)

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        where = FilesSettings(endpoint=endpoint, access_key="a", secret_key=SecretStr("secret-key"))
        async with open_files(where) as store:
            with pytest.raises(DependencyUnavailable, match=code):
                await store.put("k", b"1", content_type="x/y")


READ_MODEL = """
import asyncio, resource, sys
from pathlib import Path
from schemas.values import new_image_id
from streams.errors import DependencyUnavailable
from streams.settings import QdrantSettings
from streams.read_model.factory import open_read_model
from streams.read_model.records import ImageRecord

async def main():
    ids = [new_image_id() for _ in range(3)]
    async with open_read_model(QdrantSettings(path=Path(sys.argv[1]))) as model:
        await model.begin(ImageRecord(image_id=ids[0], owner="o", generation=1))
        size = max(path.stat().st_size for path in Path(sys.argv[1]).rglob("*") if path.is_file())
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
        try:
            for _ in range(100):
                await model.merge(ids[0], 1, {"text": "x" * 100_000})
        except DependencyUnavailable as error:
            print("away", error)
        await model.check()
        kept = await model.get(ids[0])
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        await model.begin(ImageRecord(image_id=ids[1], owner="o", generation=1))
        await model.merge(ids[1], 1, {"text": "room again"})
    async with open_read_model(QdrantSettings(path=Path(sys.argv[1]))) as model:
        assert await model.get(ids[0]) == kept, "what was said to be kept is not what is on disk"
        found = await model.get(ids[1])
        print("whole", found.text)

asyncio.run(main())
"""


async def test_a_read_model_without_room_is_away(tmp_path: Path) -> None:
    """A full disk under the read model is DependencyUnavailable; reads return only what is on disk, and writes succeed
    again once there is space.
    """
    done = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        READ_MODEL,
        str(tmp_path / "qdrant"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[4],
    )
    said, errors = await done.communicate()
    assert done.returncode == 0, errors.decode()
    assert [line.split()[0] for line in said.decode().splitlines()] == ["away", "whole"], said.decode()
