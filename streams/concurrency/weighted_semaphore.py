"""Bounds the memory of an agent that holds decoded images: by pixels, not by images."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class PixelBudget:
    """Bounds memory: images in work hold a share of the budget each, by their pixels; first come, first served."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._free = total
        self._turn = asyncio.Lock()
        self._returned = asyncio.Condition()

    @asynccontextmanager
    async def hold(self, pixels: int) -> AsyncIterator[None]:
        """Hold that many pixels, or the whole budget if it is smaller."""
        share = min(pixels, self._total)
        async with self._turn, self._returned:
            await self._returned.wait_for(lambda: self._free >= share)
            self._free -= share
        try:
            yield
        finally:
            async with self._returned:
                self._free += share
                self._returned.notify_all()
