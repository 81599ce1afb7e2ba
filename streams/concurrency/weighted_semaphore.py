"""A semaphore weighted by pixels, which bounds the memory of decoded images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """A budget of pixels, reserved by the images being processed in first-come order."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._queue = asyncio.Lock()
        self._released = asyncio.Condition()

    @asynccontextmanager
    async def reserve(self, pixels: int) -> AsyncIterator[None]:
        """Reserve that many pixels, or the whole budget if it is smaller."""
        share = min(pixels, self._total)
        async with self._queue, self._released:
            await self._released.wait_for(lambda: self._free >= share)
            self._free -= share
        try:
            yield
        finally:
            async with self._released:
                self._free += share
                self._released.notify_all()
