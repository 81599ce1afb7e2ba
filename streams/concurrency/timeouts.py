"""Deadlines for calls that have none of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def bounded(call: Awaitable[T], timeout_s: float) -> T:
    """Await a call for at most `timeout_s`. Raises TimeoutError."""
    async with asyncio.timeout(timeout_s):
        return await call
