"""Deadlines: what would be waited for without end is waited for so long at most."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def bounded(call: Awaitable[T], timeout_s: float) -> T:
    """Await a call for so long at most. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await call
