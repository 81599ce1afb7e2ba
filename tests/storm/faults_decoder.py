"""Faults of the sandbox children: crashes, out-of-memory kills, decompression bombs, hangs."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import psutil

from schemas.values import ErrorCode
from tests.storm.faults import Field, NotInjected, running, send_work, wait_until
from tests.storm.pool import BOMBS
from tests.storm.schedule import Planned
from tests.storm.world import WALL_S


async def segfault(at: Field, _fault: Planned) -> None:
    """Crash a sandbox child during work."""
    child = await _busy_child(at)
    at.child_deaths.append((time.time(), ErrorCode.DECODER_CRASHED))
    os.kill(child.pid, signal.SIGSEGV)


async def killed(at: Field, _fault: Planned) -> None:
    """Kill a sandbox child with SIGKILL, as the kernel does when out of memory."""
    child = await _busy_child(at)
    at.child_deaths.append((time.time(), ErrorCode.DECODE_MEMORY))
    os.kill(child.pid, signal.SIGKILL)


async def endless(at: Field, _fault: Planned) -> None:
    """Suspend a sandbox child past the decoding timeout."""
    child = await _busy_child(at)
    at.child_deaths.append((time.time(), ErrorCode.DECODE_TIMEOUT))
    os.kill(child.pid, signal.SIGSTOP)
    await send_work(at, "sanitizer")
    await send_work(at, "sanitizer")
    await wait_until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, 3 * WALL_S)


async def bombs(at: Field, _fault: Planned) -> None:
    """Send several decompression bombs at once."""
    contents = [at.stream.pool.contents[name] for name in BOMBS]
    await asyncio.gather(*(at.stream.upload(content, "ingest") for content in (*contents, *contents)))


async def _busy_child(at: Field) -> psutil.Process:
    """Return a sandbox child of the sanitizer that is decoding."""
    sanitizer = psutil.Process(await running(at.world, "sanitizer"))
    coming = asyncio.create_task(send_work(at, "sanitizer"))
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
        raise NotInjected(f"cannot inspect the sanitizer's children: {error}") from error
    finally:
        await coming
    raise NotInjected("the sanitizer has no children")
