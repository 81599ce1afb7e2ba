"""Dead-letter limit: a broken agent stops before its topic is dead-lettered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from itertools import takewhile
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


OWNERS = st.sampled_from(["anna", "ben", "carla", "dora", None])


@given(st.lists(st.tuples(st.booleans(), OWNERS), max_size=200))
def test_one_owner_counts_for_less_than_half_of_a_limit(ends: list[tuple[bool, str | None]]) -> None:
    """Several owners stop an agent exactly if their bounded dead letters reach a limit; else it must be checked."""
    limit = DeadLetterLimit(LimitSettings(window=20, share=0.25, in_a_row=4))
    for count in range(len(ends)):
        died, owner = ends[count]
        reached = limit.note(died=died, owner=owner)
        window = [who for dead, who in ends[max(0, count - 19) : count + 1] if dead]
        row = [who for _, who in takewhile(lambda end: end[0], reversed(ends[: count + 1]))]
        assert (reached is not None) == (len(window) > 5 or len(row) >= 4)
        if reached is not None:
            assert reached.by_several == (_bounded(window, 2) >= 6 or _bounded(row, 1) >= 4)


def _bounded(owners: list[str | None], share: int) -> int:
    named = Counter(owner for owner in owners if owner is not None)
    return owners.count(None) + sum(min(count, share) for count in named.values())


@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.01, 1), st.lists(st.sampled_from("ab"), max_size=150))
def test_two_owners_never_reach_a_limit_alone(in_a_row: int, window: int, share: float, owners: list[str]) -> None:
    """Whatever the settings, fewer than three owners only ask for a check."""
    limit = DeadLetterLimit(LimitSettings(window=window, share=share, in_a_row=in_a_row))
    for owner in owners:
        reached = limit.note(died=True, owner=owner)
        assert reached is None or not reached.by_several


def test_an_agent_that_works_is_checked_again_after_as_many_dead_letters() -> None:
    """A passed check is not repeated for the same dead letters; three owners still stop the agent at once."""
    limit = DeadLetterLimit(LimitSettings(in_a_row=10))
    assert [limit.note(died=True, owner="anna") for _ in range(9)] == [None] * 9
    assert limit.note(died=True, owner="anna") is not None
    limit.works()
    assert [limit.note(died=True, owner="anna") for _ in range(9)] == [None] * 9
    assert limit.note(died=True, owner="anna") is not None
    limit.works()
    found = [limit.note(died=True, owner=owner) for owner in ("ben", "carla") * 4]
    assert [one is not None and one.by_several for one in found] == [False] * 5 + [True] * 3


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
