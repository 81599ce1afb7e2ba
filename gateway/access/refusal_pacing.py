"""Pacing of refusals: callers without valid credentials do not take the processor from those who have them.

A burst of refused requests is answered at once. Beyond it a process answers RATE refusals a second, in their order and
each up to LONGEST_S later. A request that waits does not count as a read in progress.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

BURST = 50  # refusals answered at once after a quiet second
RATE = 50.0  # refusals a second after the burst
LONGEST_S = 4.0  # the longest wait of a refusal


class RefusalPacing:
    """The schedule of refusals of one process."""

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._clock = clock
        self._sleep = sleep
        self._due = float("-inf")  # when all refusals so far are answered at RATE

    async def wait(self) -> None:
        """Wait until the next refusal may be answered."""
        now = self._clock()
        self._due = max(now, self._due) + 1 / RATE
        early_s = min(self._due - now - BURST / RATE, LONGEST_S)
        self._due = min(self._due, now + BURST / RATE + LONGEST_S)
        if early_s > 0:
            await self._sleep(early_s)
