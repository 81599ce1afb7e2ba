"""Budgets of requests per source, on a real directory store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.object_store.source_budgets import ROOT, Budget, SourceBudgets, Wait, recent_requests
from streams.settings import FilesSettings
from tests.support.hand_clock import HandClock

HOUR = Budget(requests=25, window_s=3600)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


async def taken(budgets: SourceBudgets, source: str, number: int, budget: Budget = HOUR) -> list[float]:
    """Return the times of the requests, of so many tries, that were allowed."""
    found = [await budgets.take(source, budget) for _ in range(number)]
    return [at for at in found if isinstance(at, float)]


async def test_26_for_one_source_and_5_for_another(files: FileStore) -> None:
    """25 and 5 go out at once; the 26th waits until the window has moved, also for a new worker."""
    clock = HandClock(1000.0)
    budgets = SourceBudgets(files, clock=clock)
    assert len(await taken(budgets, "a.example", 26)) == 25
    assert len(await taken(budgets, "b.example", 5)) == 5

    clock.now += 3599
    restarted = SourceBudgets(files, clock=clock)
    assert await restarted.take("a.example", HOUR) == Wait(1.0)
    clock.now += 1
    assert len(await taken(restarted, "a.example", 26)) == 25


async def test_workers_share_a_budget(files: FileStore) -> None:
    """Of many concurrent tries of several workers, as many succeed as the budget has; no request is counted twice."""
    clock = HandClock(0.0)
    workers = [SourceBudgets(files, clock=clock) for _ in range(4)]
    found = await asyncio.gather(*(worker.take("a.example", HOUR) for worker in workers for _ in range(12)))
    assert sum(isinstance(at, float) for at in found) == 25
    assert [(source, count) async for source, count, _ in recent_requests(files, since=0.0)] == [("a.example", 25)]


async def test_a_block_holds_for_other_workers(files: FileStore) -> None:
    """What a source asked for by Retry-After is obeyed by this worker and the next; a shorter block changes nothing."""
    clock = HandClock(0.0)
    budgets = SourceBudgets(files, clock=clock)
    assert await budgets.take("a.example", HOUR) == 0.0
    await budgets.block("a.example", 60.0)
    await budgets.block("a.example", 30.0)
    for worker in (budgets, SourceBudgets(files, clock=clock)):
        assert await worker.take("a.example", HOUR) == Wait(60.0)
    clock.now = 60.0
    assert await budgets.take("a.example", HOUR) == 60.0


async def test_an_interval_lies_between_two_requests(files: FileStore) -> None:
    """With an interval, the next request waits for it, though the budget is not spent."""
    clock = HandClock(0.0)
    budgets, budget = SourceBudgets(files, clock=clock), Budget(25, 3600, interval_s=2)
    assert await budgets.take("a.example", budget) == 0.0
    clock.now = 0.5
    assert await budgets.take("a.example", budget) == Wait(1.5)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from([0.0, 1.0, 3.0, 4.0, 11.0]), st.booleans()),
        min_size=30,
        max_size=90,
    )
)
async def test_no_window_ever_has_more(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[int, float, bool]]
) -> None:
    """Whatever workers do, die and are replaced by: no window has more requests than the budget, and few are stored."""
    clock, budget = HandClock(0.0), Budget(requests=4, window_s=10.0)
    times: list[float] = []
    async with open_files(FilesSettings(directory=tmp_path_factory.mktemp("store"))) as files:
        workers = [SourceBudgets(files, clock=clock) for _ in range(3)]
        for number, seconds, killed in steps:
            clock.now += seconds
            if killed:
                workers[number] = SourceBudgets(files, clock=clock)
            answer = await workers[number].take("a.example", budget)
            if isinstance(answer, Wait):
                assert answer.seconds > 0
                assert sum(at > clock.now - budget.window_s for at in times) == budget.requests
            else:
                times.append(answer)
        stored = [info async for info in files.list(ROOT)]
    assert all(later - earlier >= budget.window_s for earlier, later in zip(times, times[4:], strict=False))
    assert all(later >= earlier for earlier, later in pairwise(times))
    assert len(stored) >= sum(at > clock.now - 2 * budget.window_s for at in times)
