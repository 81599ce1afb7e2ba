"""Dead-letter limit: a broken agent stops before its topic is dead-lettered."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.values import ErrorCode
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.operations.agent_pauses import Control
from streams.retries.dead_letter_limit import DeadLetterLimit
from streams.settings import FilesSettings, LimitSettings
from streams.stage import Reject
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import bench, echo_stage, message, uploaded


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


@given(st.lists(st.booleans(), max_size=300))
def test_the_limit_is_the_share_of_the_window_or_the_row(ends: list[bool]) -> None:
    """It stops the agent exactly if too many of the last events, or too many in a row, were dead-lettered."""
    limit = DeadLetterLimit(LimitSettings(window=20, share=0.25, in_a_row=4))
    for count in range(len(ends)):
        reason = limit.note(died=ends[count])
        window = ends[max(0, count - 19) : count + 1]
        row = ends[max(0, count - 3) : count + 1]
        assert (reason is not None) == (sum(window) > 5 or (len(row) == 4 and all(row)))


async def test_an_agent_that_always_fails_is_halted(files: FileStore) -> None:
    """After the limit the agent is halted with the reason."""
    stage = echo_stage(act=lambda _e: 1 / 0)  # type: ignore[arg-type,return-value]
    log = MemoryLog()
    await log.deliver([message(uploaded()) for _ in range(10)])
    on = bench(stage, files, log, limit=LimitSettings(in_a_row=5))
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    await worker.until_idle()
    await worker.stop()
    assert on.halted[0] == "5 events in a row went to the dead letters"


async def test_rejected_images_never_halt_an_agent(files: FileStore) -> None:
    """Rejections do not count towards the limit."""
    stage = echo_stage(act=lambda _e: Reject(ErrorCode.CORRUPT_IMAGE, "It is broken."))
    log = MemoryLog()
    await log.deliver([message(uploaded()) for _ in range(30)])
    on = bench(stage, files, log, limit=LimitSettings(in_a_row=3, window=5))
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    await worker.until_idle()
    await worker.stop()
    assert on.halted == []


async def test_a_pause_keeps_its_first_reason_until_it_is_resumed(files: FileStore) -> None:
    """The pause is stored for every worker; resuming returns whether there was one."""
    control = Control(files)
    assert await control.paused("ocr") is None
    await asyncio.gather(control.pause("ocr", "broken", by="a"), control.pause("resizer", "maintenance", by="operator"))
    await control.pause("ocr", "another reason", by="b")
    assert [(mark.agent, mark.reason) for mark in await control.all()] == [
        ("ocr", "broken"),
        ("resizer", "maintenance"),
    ]
    assert await control.resume("ocr")
    assert not await control.resume("ocr")
    assert await control.paused("ocr") is None


async def test_a_degraded_agent_is_listed_until_it_recovers(files: FileStore) -> None:
    """The reason is stored while the agent lacks its model, and removed afterwards."""
    control = Control(files)
    await control.set_degraded("embedder", "no weights")
    assert await control.degraded() == {"embedder": "no weights"}
    await control.set_degraded("embedder", None)
    assert await control.degraded() == {}
