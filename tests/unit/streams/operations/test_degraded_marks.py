"""Marks of degraded agents: one per replica, until it expires."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.operations.agent_pauses import DEGRADED_S, Control
from streams.settings import FilesSettings


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


async def test_a_replica_removes_only_its_own_mark(files: FileStore) -> None:
    """A healthy replica that starts leaves the marks of the others; equal reasons are listed once."""
    control = Control(files)
    for replica in ("host-a/1", "host-b/1"):
        await control.set_degraded("embedder", "no weights", by=replica)
    await control.set_degraded("embedder", "no torch", by="host-c/1")
    await control.set_degraded("embedder", None, by="host-d/1")
    await control.set_degraded("detector", None, by="host-a/1")
    assert await control.degraded() == {"embedder": "no weights; no torch"}
    await control.set_degraded("embedder", None, by="host-c/1")
    await control.set_degraded("embedder", None, by="host-a/1")
    assert await control.degraded() == {"embedder": "no weights"}
    await control.set_degraded("embedder", None, by="host-b/1")
    assert await control.degraded() == {}


async def test_the_mark_of_a_crashed_replica_expires(files: FileStore) -> None:
    """A mark that is not renewed counts no longer, and the next replica of its agent removes it."""
    ahead_s = 0.0
    control = Control(files, clock=lambda: time.time() + ahead_s)
    for agent in ("embedder", "ocr"):
        await control.set_degraded(agent, "no weights", by="crashed/1")
    ahead_s = DEGRADED_S
    assert await control.degraded() == {}
    await control.set_degraded("embedder", None, by="other/1")
    assert [found.key async for found in files.list("control/")] == ["control/degraded/ocr@crashed-1"]


async def test_a_mark_of_an_earlier_version_expires(files: FileStore) -> None:
    """Earlier versions wrote one mark per agent, which no replica removes for another."""
    ahead_s = 0.0
    control = Control(files, clock=lambda: time.time() + ahead_s)
    await files.put("control/degraded/ocr", b"no engine", content_type="text/plain")
    assert await control.degraded() == {"ocr": "no engine"}
    ahead_s = DEGRADED_S
    await control.set_degraded("ocr", None, by="host/1")
    assert [found.key async for found in files.list("control/")] == []
