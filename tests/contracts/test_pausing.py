"""Pausing on a real Kafka: an agent paused by its limit or by an operator loses no event and resumes."""

from __future__ import annotations

import asyncio
from pathlib import Path

from infra.local.kafka import LocalKafka
from streams.object_store.factory import open_files
from streams.operations.agent_pauses import Control
from streams.settings import FilesSettings
from tests.contracts.logs import OnKafka
from tests.support.stage_kit import message, uploaded

QUICK = {"DARKROOM_WORKER__CONTROL_INTERVAL_S": "0.2", "DARKROOM_LIMIT__IN_A_ROW": "5"}


async def _until(log: OnKafka, members: int) -> None:
    async with asyncio.timeout(60):
        while (await log.admin.members()).get("sanitizer", 0) != members:
            await asyncio.sleep(0.2)


async def test_a_broken_agent_is_paused_and_continues_when_resumed(kafka: LocalKafka, tmp_path: Path) -> None:
    """Most events stay in the topic; the pause has the reason; resuming loses no event."""
    log = await OnKafka(kafka.bootstrap, tmp_path, **QUICK).prepare()
    try:
        broken = {"act": "raise", "sleep_s": 0.05}
        await log.send([message(uploaded(owner=f"owner-{n % 3}", context=broken)) for n in range(60)])
        await log.start()
        async with open_files(FilesSettings(directory=tmp_path)) as files:
            control = Control(files)
            async with asyncio.timeout(60):
                while (pause := await control.paused("sanitizer")) is None:
                    await asyncio.sleep(0.1)
            assert "in a row went to the dead letters" in pause.reason
            await _until(log, 0)
            dead = len(await log.records("sanitizer.dead"))
            assert 5 <= dead < 40
            await log.send([message(uploaded())])
            while await control.paused("sanitizer") or await log._lag():
                await control.resume("sanitizer")
                await asyncio.sleep(0.5)
        await log.stop()
        assert len(await log.records("sanitizer.dead")) == 60
        assert len(await log.records("image.facts")) == 61
    finally:
        await log.close()


async def test_one_owner_s_events_never_pause_an_agent(kafka: LocalKafka, tmp_path: Path) -> None:
    """All events of one owner become dead letters, far beyond the limit; the others' images are processed."""
    log = await OnKafka(kafka.bootstrap, tmp_path, **QUICK).prepare()
    try:
        bad = [message(uploaded(owner="anna", context={"act": "raise"})) for _ in range(60)]
        good = [message(uploaded(owner="ben")) for _ in range(20)]
        await log.send([*bad[:30], *good[:10], *bad[30:], *good[10:]])
        await log.start()
        await log.until_idle()
        async with open_files(FilesSettings(directory=tmp_path)) as files:
            assert await Control(files).paused("sanitizer") is None
        await log.stop()
        assert len(await log.records("sanitizer.dead")) == 60
        assert len(await log.records("image.facts")) == 80
    finally:
        await log.close()


async def test_a_paused_agent_consumes_nothing_and_logs_it(kafka: LocalKafka, tmp_path: Path) -> None:
    """Paused before its start, the worker runs, is not in the group, and starts consuming when resumed."""
    log = await OnKafka(kafka.bootstrap, tmp_path, **QUICK).prepare()
    try:
        async with open_files(FilesSettings(directory=tmp_path)) as files:
            control = Control(files)
            await control.pause("sanitizer", "maintenance", by="operator")
            await log.send([message(uploaded())])
            await log.start()
            async with asyncio.timeout(60):
                while b"paused" not in (tmp_path / "worker-0.log").read_bytes():
                    await asyncio.sleep(0.1)
            assert (await log.admin.members()).get("sanitizer", 0) == 0
            assert await log.records("image.facts") == []
            assert await control.resume("sanitizer")
            await log.until_idle()
            await control.pause("sanitizer", "maintenance again", by="operator")
            await _until(log, 0)
        await log.stop()
        assert len(await log.records("image.facts")) == 1
    finally:
        await log.close()
