"""Faults of the decoding children: they crash, are killed for their memory, explode, or never end."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil

from schemas.values import ErrorCode
from tests.storm.faults import Field, NotStruck, lure, running, wait_until
from tests.storm.pool import BOMBS
from tests.storm.schedule import Planned
from tests.storm.world import WALL_S


async def segfault(at: Field, _fault: Planned) -> None:
    """Have one decoding child crash in its work."""
    child = await _at_work(at)
    at.child_deaths.append((time.time(), ErrorCode.DECODER_CRASHED))
    os.kill(child.pid, signal.SIGSEGV)


async def killed(at: Field, _fault: Planned) -> None:
    """Kill one decoding child with -9, as the kernel does for want of memory."""
    child = await _at_work(at)
    at.child_deaths.append((time.time(), ErrorCode.DECODE_MEMORY))
    os.kill(child.pid, signal.SIGKILL)


async def endless(at: Field, _fault: Planned) -> None:
    """Stop one decoding child past the time a decoding may take."""
    child = await _at_work(at)
    at.child_deaths.append((time.time(), ErrorCode.DECODE_TIMEOUT))
    os.kill(child.pid, signal.SIGSTOP)
    await lure(at, "sanitizer")
    await lure(at, "sanitizer")
    await wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 3 * WALL_S)


async def bombs(at: Field, _fault: Planned) -> None:
    """Send images built to explode, several at once."""
    contents = [at.stream.pool.contents[name] for name in BOMBS]
    await asyncio.gather(*(at.stream.upload(content, "ingest") for content in (*contents, *contents)))


async def _at_work(at: Field) -> psutil.Process:
    """Return a child of the sanitizer while an image is on its way to it."""
    sanitizer = psutil.Process(await running(at.world, "sanitizer"))
    coming = asyncio.create_task(lure(at, "sanitizer"))
    try:
        for _ in range(200):
            children = [child for child in sanitizer.children() if "streams.sandbox.child" in child.cmdline()]
            busy = [
                child for child in children if child.cpu_percent(0.01) > 0 and child.status() == psutil.STATUS_RUNNING
            ]
            if busy or (coming.done() and children):
                return (busy or children)[0]
            await asyncio.sleep(0.02)
    except psutil.Error as error:
        raise NotStruck(f"the sanitizer's children could not be seen: {error}") from error
    finally:
        await coming
    raise NotStruck("the sanitizer has no children")
