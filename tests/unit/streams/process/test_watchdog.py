"""The watchdog: a stuck worker leaves, so that somebody else does its work."""

from __future__ import annotations

import asyncio
import threading
import time

from streams.process.watchdog import EXIT_STUCK, Watchdog, WatchdogSettings


async def test_a_blocked_event_loop_ends_the_process() -> None:
    """A loop that does not turn cannot say so itself: the thread does, with the exit code of a stuck worker."""
    left: list[int] = []
    async with Watchdog(WatchdogSettings("test", loop_lag_s=0.2, interval_s=0.05), leave=left.append):
        time.sleep(0.6)  # what must never happen in a worker
    assert left == [EXIT_STUCK]


async def test_a_failing_check_ends_the_process() -> None:
    """Work in flight for too long, or lag without a fetch, is reason enough."""
    left = threading.Event()
    watchdog = Watchdog(
        WatchdogSettings("test", interval_s=0.02),
        checks=(lambda: None, lambda: "work is in flight for 900 s"),
        leave=lambda _code: left.set(),
    )
    async with watchdog:
        assert await asyncio.to_thread(left.wait, 5)


async def test_a_worker_that_does_well_is_left_alone() -> None:
    """No false alarm: neither a turning loop nor a content check ends anything."""
    left: list[int] = []
    asked = threading.Event()

    def content() -> None:
        asked.set()

    async with Watchdog(WatchdogSettings("test", interval_s=0.01), checks=(content,), leave=left.append):
        assert await asyncio.to_thread(asked.wait, 5)
    assert left == []
