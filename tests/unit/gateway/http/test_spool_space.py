"""The limit on what all uploads in progress have on disk together."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.http.spool_space import SPACE
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
from tests.support.gateway_components import BASE, JPEG, UPLOAD, Sink, StubReadiness, client_of, refused, settings

MEBIBYTE = 1 << 20  # what is buffered before it is written
PATIENCE_S = 60.0
TUS = {"Tus-Resumable": "1.0.0"}


@asynccontextmanager
async def opened(folder: Path, **changes: object) -> AsyncIterator[httpx.AsyncClient]:
    """Return a client of an ingest app; afterwards nothing is counted."""
    async with open_files(FilesSettings(directory=folder)) as files:
        components = IngestComponents(files=files, events=Sink(), readiness=StubReadiness())
        async with client_of(ingest_app(settings(**changes), components)) as client:
            yield client
    assert SPACE.used == 0


@pytest.mark.parametrize("kind", ["image/jpeg", "multipart/form-data; boundary=x"])
async def test_uploads_beyond_the_space_get_503_until_another_ends(tmp_path: Path, kind: str) -> None:
    """While uploads in progress use the space, others get 503 with Retry-After and store nothing; then they succeed."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    opening, closing = (part, b"\r\n--x--\r\n") if "boundary" in kind else (b"", b"")
    complete = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        yield opening + JPEG + bytes(MEBIBYTE)
        await complete.wait()
        yield closing

    async with opened(tmp_path, max_spool_bytes=MEBIBYTE + 1000) as client, asyncio.timeout(PATIENCE_S):
        first = asyncio.create_task(client.post(UPLOAD, content=slow(), headers={"content-type": kind}))
        while not SPACE.used:
            await asyncio.sleep(0.01)
        data = opening + JPEG + bytes(2000) + closing
        answer = await client.post(UPLOAD, content=data, headers={"content-type": kind})
        problem = refused(answer, 503, "dependency-unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert "disk space" in problem.detail
        complete.set()
        assert (await first).status_code == 202
        assert SPACE.used == 0
        assert (await client.post(UPLOAD, content=data, headers={"content-type": kind})).status_code == 202


async def test_members_of_an_archive_need_space_only_while_they_are_accepted(tmp_path: Path) -> None:
    """An archive whose members together exceed the space is accepted: they are extracted and removed one by one."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        for number in range(12):
            archive.writestr(f"{number}.jpg", JPEG + bytes([number]) * 100_000)
    async with opened(tmp_path, max_spool_bytes=len(packed.getvalue()) + 500_000) as client:
        headers = {"content-type": "application/zip"}
        answer = await client.post("/api/v1/images/batch", content=packed.getvalue(), headers=headers)
        assert answer.status_code == 202, answer.text


async def test_parts_of_a_resumable_upload_need_space_only_until_they_are_stored(tmp_path: Path) -> None:
    """A request with more bytes than the space is accepted piece by piece; a piece above the space gets 503."""
    async with opened(tmp_path, max_spool_bytes=200_000, piece_bytes=65_536) as client:
        answer = await client.post("/api/v1/uploads", headers={**TUS, "Upload-Length": "1000000"})
        path = answer.headers["location"].removeprefix(BASE)
        part = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        answer = await client.patch(path, content=JPEG + bytes(600_000), headers=part)
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(600_000 + len(JPEG)))
    async with opened(tmp_path, max_spool_bytes=50_000, piece_bytes=65_536) as client:
        answer = await client.patch(
            path, content=bytes(60_000), headers={**part, "Upload-Offset": str(600_000 + len(JPEG))}
        )
        refused(answer, 503, "dependency-unavailable")
        assert int(answer.headers["retry-after"]) > 0
