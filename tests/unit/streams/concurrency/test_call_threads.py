"""Blocking calls in threads: results, exceptions, cancelled calls, and no more threads than wanted."""

from __future__ import annotations

import asyncio
import threading
from functools import partial

import pytest

from streams.concurrency.call_threads import CallThreads


async def test_every_call_gets_its_own_result() -> None:
    """Many calls at once, and one after the other when the threads have gone idle, return their own results."""
    calls = CallThreads(2, name="calls")
    assert await asyncio.gather(*(calls.run(partial(pow, n, 2)) for n in range(500))) == [n * n for n in range(500)]
    for number in range(50):
        assert await calls.run(partial(abs, number)) == number
    await calls.close()


async def test_an_exception_reaches_its_caller_only() -> None:
    """A call that raises fails alone."""
    calls = CallThreads(1, name="calls")
    found = await asyncio.gather(calls.run(lambda: 1 // 0), calls.run(lambda: 7), return_exceptions=True)
    assert isinstance(found[0], ZeroDivisionError)
    assert found[1] == 7
    await calls.close()


async def test_a_cancelled_call_does_not_begin() -> None:
    """A call that is cancelled while it waits for a thread is never run."""
    calls, free, ran = CallThreads(1, name="calls"), threading.Event(), list[str]()
    busy = asyncio.create_task(calls.run(free.wait))
    waiting = asyncio.create_task(calls.run(lambda: ran.append("cancelled")))
    left = asyncio.create_task(calls.run(lambda: ran.append("left")))
    await asyncio.sleep(0.05)
    waiting.cancel()
    free.set()
    assert await busy
    with pytest.raises(asyncio.CancelledError):
        await waiting
    await left
    assert ran == ["left"]
    await calls.close()


async def test_closing_cancels_what_has_not_begun() -> None:
    """A running call ends with its result; one that waits for a thread is cancelled and never run."""
    calls, free, ran = CallThreads(1, name="calls"), threading.Event(), list[str]()
    busy = asyncio.create_task(calls.run(free.wait))
    waiting = asyncio.create_task(calls.run(lambda: ran.append("waiting")))
    await asyncio.sleep(0.05)
    closing = asyncio.create_task(calls.close())
    with pytest.raises(asyncio.CancelledError):
        await waiting
    free.set()
    await closing
    assert await busy
    assert not ran
