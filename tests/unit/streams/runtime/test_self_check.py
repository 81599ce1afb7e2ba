"""The self-check: one owner's input never pauses a stage that works, and a broken stage pauses for one owner too."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents import pipeline
from schemas.events.envelope import Event, Record
from schemas.events.facts import StageFailed
from schemas.values import STAGES
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.runtime.self_check import owner_of
from streams.settings import FilesSettings, LimitSettings
from streams.stage import Outcome, Stage, StageSettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import Bench, Seen, bench, echo_stage, message, uploaded

LIMIT = LimitSettings(in_a_row=5, window=20, share=0.25)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


def _fails_on_bad(event: Event) -> Outcome | None:
    if event.owner.startswith("bad"):
        raise ZeroDivisionError
    return None


def _stage(seen: Seen | None = None, *, probe: Any = None) -> Stage[Any, Any, Any]:
    return replace(echo_stage(seen, act=_fails_on_bad), probe=probe)


async def _run(stage: Stage[Any, Any, Any], files: FileStore, *owners: str, **settings: Any) -> Bench:
    """Process one event of each owner; return the bench."""
    log = MemoryLog()
    await log.deliver([message(uploaded(owner=owner)) for owner in owners])
    on = bench(stage, files, log, limit=LIMIT, **settings)
    worker = MemoryWorker(log, stage.name, ["image.uploaded"], on.intake)
    await worker.until_idle()
    await worker.stop()
    return on


async def test_one_owner_does_not_pause_a_stage_that_passes_its_own_check(files: FileStore) -> None:
    """Hundreds of dead letters of one owner leave the stage running; every other owner's image completes."""
    seen, checks = Seen(), []

    async def probe(_tools: None) -> None:
        checks.append(1)

    owners = ["bad-one", "bad-one", "good"] * 60 + ["bad-one"] * 180
    on = await _run(_stage(seen, probe=probe), files, *owners)
    assert on.halted == []
    assert len(seen.images) == len(owners)
    assert len(on.log.records("sanitizer.dead")) == owners.count("bad-one")
    assert 1 <= len(checks) <= owners.count("bad-one") / LIMIT.in_a_row


async def test_a_broken_stage_pauses_although_one_owner_is_alone(files: FileStore) -> None:
    """Where every event has the same owner, the stage's own input decides; the reason names the dead letters."""

    async def probe(_tools: None) -> None:
        raise RuntimeError("the model answers NaN")

    on = await _run(_stage(probe=probe), files, *["bad-one"] * 8)
    assert on.halted[0] == "5 events in a row went to the dead letters"


async def test_several_owners_pause_a_stage_without_a_check(files: FileStore) -> None:
    """Three owners whose events all die stop the stage; its own check is not asked."""
    on = await _run(_stage(), files, *["bad-one", "bad-two", "bad-three"] * 3)
    assert on.halted[0].endswith("events in a row went to the dead letters")


async def test_a_stage_without_a_check_is_not_paused_by_one_owner(files: FileStore) -> None:
    """Without a check nothing shows that the stage is at fault: it continues, and the dead letters can be replayed."""
    on = await _run(_stage(), files, *["bad-one"] * 50, "good")
    assert on.halted == []
    assert len(on.log.records("sanitizer.dead")) == 50


async def test_a_check_that_takes_too_long_does_not_pause_the_stage(files: FileStore) -> None:
    """One owner may keep a stage busy until its check misses the deadline; that is no proof of a broken stage."""

    async def probe(_tools: None) -> None:
        await asyncio.Event().wait()

    on = await _run(_stage(probe=probe), files, *["bad-one"] * 8, settings=StageSettings(deadline_s=0.05))
    assert on.halted == []


async def test_each_dead_letter_still_fails_its_image(files: FileStore) -> None:
    """The owner sees every failed image as failed."""
    on = await _run(_stage(), files, *["bad-one"] * 10)
    facts = [json.loads(record.value or b"") for record in on.log.records("image.facts")]
    assert [fact["owner"] for fact in facts] == ["bad-one"] * 10
    assert {record.header("ce_type") for record in on.log.records("image.facts")} == {StageFailed.type}


@pytest.mark.parametrize(
    ("value", "owner"),
    [
        pytest.param(uploaded(owner="acme").body(), "acme", id="an event"),  # its id differs between workers
        (b'{"image_id": 5, "owner": "acme"}', "acme"),
        (b'{"image_id": "x"}', "default"),
        (b'{"specversion": "1.0", "data": {"owner": "acme"}}', "acme"),
        (b'{"specversion": "1.0", "data_base64": "e30="}', None),
        (b'{"owner": ["acme"]}', None),
        (b'["owner"]', None),
        (b"\xff\xfe", None),
        (b"[" * 100_000, None),
        (b"", None),
        (None, None),
    ],
)
def test_the_owner_is_read_from_events_that_are_invalid_otherwise(value: bytes | None, owner: str | None) -> None:
    """A dead letter is charged to the owner it names, also if the rest is no event."""
    assert owner_of(Record("image.uploaded", 0, 0, None, value)) == owner


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_can_check_itself(name: str) -> None:
    """Every agent tells a broken stage from one owner's bad input."""
    assert pipeline.stage(name).probe is not None
