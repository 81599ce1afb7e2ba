"""The watchdog: a stuck worker exits, so that its partitions are reassigned."""

from __future__ import annotations

import asyncio
import threading
import time

from streams.process.watchdog import EXIT_STUCK, Watchdog, WatchdogSettings


async def test_a_blocked_event_loop_ends_the_process() -> None:
    """The watchdog thread exits the process with the code of a stuck worker."""
    exits: list[int] = []
    async with Watchdog(WatchdogSettings("test", loop_lag_s=0.2, interval_s=0.05), exit_process=exits.append):
        time.sleep(0.6)  # blocks the event loop
    assert exits == [EXIT_STUCK]


async def test_a_failing_check_ends_the_process() -> None:
    """A check that returns a problem ends the process."""
    exited = threading.Event()
    watchdog = Watchdog(
        WatchdogSettings("test", interval_s=0.02),
        checks=(lambda: None, lambda: "an event is in flight for 900 s"),
        exit_process=lambda _code: exited.set(),
    )
    async with watchdog:
        assert await asyncio.to_thread(exited.wait, 5)


async def test_a_healthy_worker_keeps_running() -> None:
    """A running event loop and a check without a problem do not end the process."""
    exits: list[int] = []
    checked = threading.Event()

    def passing() -> None:
        checked.set()

    async with Watchdog(WatchdogSettings("test", interval_s=0.01), checks=(passing,), exit_process=exits.append):
        assert await asyncio.to_thread(checked.wait, 5)
    assert exits == []
