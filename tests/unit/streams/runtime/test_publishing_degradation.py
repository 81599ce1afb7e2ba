"""A worker keeps in the store what it runs without, for as long as it runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.operations.agent_pauses import Control
from streams.runtime import worker_process
from streams.settings import FilesSettings, WorkerSettings
from streams.telemetry.health_board import Condition, HealthBoard


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


async def until(control: Control, expected: Mapping[str, str]) -> None:
    async with asyncio.timeout(60):
        while await control.degraded() != expected:
            await asyncio.sleep(0.001)


async def test_the_mark_follows_the_health_of_the_worker(files: FileStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """It appears, changes and disappears with the reason, is renewed, and leaves those of other replicas."""
    monkeypatch.setattr(worker_process, "DEGRADED_RENEWAL_S", 0.0)
    control, health = Control(files), HealthBoard()
    await control.set_degraded("ocr", "no engine", by="other/1")
    health.say("ocr", Condition.DEGRADED, "no weights")
    settings = WorkerSettings(control_interval_s=0.001)
    publishing = asyncio.create_task(worker_process._publish_degraded("ocr", control, health, settings, None))
    try:
        async with asyncio.timeout(60):
            while "no weights" not in (await control.degraded())["ocr"]:
                await asyncio.sleep(0.001)
        own = f"control/degraded/ocr@{worker_process.worker_name().replace('/', '-')}"
        await files.delete(own)  # written again by the next renewal
        async with asyncio.timeout(60):
            while await files.stat(own) is None:
                await asyncio.sleep(0.001)
        health.say("ocr", Condition.OK, "loaded")
        await until(control, {"ocr": "no engine"})
    finally:
        publishing.cancel()
        await asyncio.gather(publishing, return_exceptions=True)
