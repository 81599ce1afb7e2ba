"""The watchdog: a thread that detects a stuck worker, writes every stack to the log, and exits the process.

Zombie workers (alive, assigned, not processing) are a common failure of Kafka consumers that Kafka does not detect,
because heartbeats come from another thread. The exit leads to a restart and redelivery.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from streams.telemetry import metrics

EXIT_STUCK = 71
log = structlog.get_logger(__name__)

Check = Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class WatchdogSettings:
    """Limits in seconds, and the process name in the metric."""

    process: str
    loop_lag_s: float = 10.0
    interval_s: float = 1.0


class Watchdog:
    """Monitors one event loop and any number of checks; a check returns a problem or None."""

    def __init__(
        self,
        settings: WatchdogSettings,
        *,
        checks: tuple[Check, ...] = (),
        exit_process: Callable[[int], None] = os._exit,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._checks = checks
        self._exit_process = exit_process
        self._clock = clock
        self._beat = clock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._pulse: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Watchdog:
        self._beat = self._clock()
        self._pulse = asyncio.create_task(self._beat_forever(), name="watchdog-pulse")
        self._thread.start()
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._stop.set()
        if self._pulse is not None:
            self._pulse.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pulse

    async def _beat_forever(self) -> None:
        while True:
            late = self._clock() - self._beat - self._settings.interval_s / 2
            metrics.WATCHDOG_LAG.labels(self._settings.process).set(max(0.0, late))
            self._beat = self._clock()
            await asyncio.sleep(self._settings.interval_s / 2)

    def _watch(self) -> None:
        while not self._stop.wait(self._settings.interval_s):
            lag = self._clock() - self._beat
            problem = f"event loop blocked for {lag:.0f} s" if lag > self._settings.loop_lag_s else None
            problem = problem or next((found for check in self._checks if (found := check())), None)
            if problem:
                log.critical("watchdog: worker stuck; exiting", problem=problem)
                faulthandler.dump_traceback(sys.stderr, all_threads=True)
                self._exit_process(EXIT_STUCK)
                return
