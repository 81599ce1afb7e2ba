"""Full disks and exceeded quotas raise DependencyUnavailable, leave no partial write, and end once there is space."""

from __future__ import annotations

import asyncio
import errno
import io
import os
import subprocess
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
    """A folder whose disk can be filled: a tmpfs where this process may mount, else a simulation by patched opens."""

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
        """Fill the disk: bytes and inodes."""
        if not self.real:
            self._simulate()
            return
        with (self.folder / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
            while True:
                ballast.write(bytes(4096))
        with suppress(OSError):
            for number in range(1000):
                (self.folder / f"ballast-{number}").touch()

    def free(self) -> None:
        """Free the disk."""
        self._patch.undo()
        for ballast in self.folder.glob("ballast*"):
            ballast.unlink()

    def close(self) -> None:
        """Unmount the disk."""
        if self.real:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=True, timeout=60)

    def _simulate(self) -> None:
        of_io, of_os = io.open, os.open

        def raise_if_new(path: Any) -> None:
            if isinstance(path, str | Path) and self.folder in Path(path).parents and not Path(path).exists():
                raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(path))

        def io_open(path: Any, mode: str = "r", *more: Any, **named: Any) -> Any:
            if mode[0] in "wxa":
                raise_if_new(path)
            return of_io(path, mode, *more, **named)

        def os_open(path: Any, flags: int, *more: Any, **named: Any) -> int:
            if flags & os.O_CREAT:
                raise_if_new(path)
            return of_os(path, flags, *more, **named)

        self._patch.setattr(io, "open", io_open)
        self._patch.setattr(os, "open", os_open)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SmallDisk]:
    """A disk of two megabytes."""
    small = SmallDisk(tmp_path / "disk", monkeypatch)
    try:
        yield small
    finally:
        small.free()
        small.close()


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store on a disk with free space."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield store


async def test_a_store_on_a_full_disk_reads_and_removes(disk: SmallDisk) -> None:
    """Writes fail, after five at once by the breaker, while objects can be read and removed; then writes succeed."""
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


async def test_events_are_processed_without_crash_markers_on_a_full_disk(disk: SmallDisk, files: FileStore) -> None:
    """With a full disk under the crash markers events are processed without markers."""
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
    """With a full spool disk an upload is answered 503 and stores nothing; with free space it is accepted."""
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
async def test_a_stage_with_a_full_local_disk_is_retried(files: FileStore, code: int) -> None:
    """An event whose stage cannot write temporary files is delayed, not dead-lettered."""

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
async def test_a_full_s3_store_is_unavailable(status: int, code: str) -> None:
    """An exceeded bucket quota and a full server disk raise DependencyUnavailable, not ValueError."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        body = f"<Error><Code>{code}</Code><Message>full</Message></Error>".encode()
        head = await reader.readuntil(b"\r\n\r\n")
        start, kind = f"HTTP/1.1 {status} No\r\nConnection: close\r\n", "Content-Type: application/xml\r\n"
        if head.startswith(b"HEAD"):
            writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        else:
            lines = head.lower().split(b"\r\n")
            length = next(int(line[15:]) for line in lines if line.startswith(b"content-length:"))
            await reader.readexactly(length)
            writer.write(f"{start}{kind}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    async with server:
        endpoint = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        where = FilesSettings(endpoint=endpoint, access_key="a", secret_key=SecretStr("secret-key"))
        async with open_files(where) as store:
            with pytest.raises(DependencyUnavailable, match=code):
                await store.put("k", b"1", content_type="x/y")
