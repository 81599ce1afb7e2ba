"""Waits for SIGTERM or SIGINT."""

from __future__ import annotations

import asyncio
import signal


async def until_signal() -> None:
    """Return on the first SIGTERM or SIGINT."""
    signalled = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, signalled.set)
    await signalled.wait()
