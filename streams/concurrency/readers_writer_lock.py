"""A readers-writer lock for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class ReadWriteLock:
    """Any number of shared owners, or one exclusive owner. A waiting exclusive owner precedes later shared ones."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._shared_owners = 0
        self._exclusive_owner = False
        self._exclusive_waiters = 0

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        """Acquire the lock together with other shared owners."""
        async with self._changed:
            await self._changed.wait_for(lambda: not self._exclusive_owner and not self._exclusive_waiters)
            self._shared_owners += 1
        try:
            yield
        finally:
            async with self._changed:
                self._shared_owners -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Acquire the lock alone."""
        async with self._changed:
            self._exclusive_waiters += 1
            try:
                await self._changed.wait_for(lambda: not self._exclusive_owner and not self._shared_owners)
            finally:
                self._exclusive_waiters -= 1
                self._changed.notify_all()
            self._exclusive_owner = True
        try:
            yield
        finally:
            async with self._changed:
                self._exclusive_owner = False
                self._changed.notify_all()
