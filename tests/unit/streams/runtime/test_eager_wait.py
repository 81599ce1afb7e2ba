"""Faust's wait for the first of several coroutines, without tasks where the first one does not suspend."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from mode.services import Service

from streams.runtime.eager_wait import EagerWaits


class Plain(Service):  # type: ignore[misc]
    """A service as Faust's consumer is one."""


class Eager(EagerWaits, Plain):
    """The same service with eager waits."""


KINDS = pytest.mark.parametrize("kind", [Plain, Eager])


async def after(steps: int, result: str = "done") -> str:
    """Return a result after giving up control that many times, partly for a timer."""
    for number in range(steps):
        await asyncio.sleep(0.001 * (number % 2))
    return result


async def forever() -> None:
    """Wait for what never happens, as for a suspension of the flow."""
    await asyncio.Event().wait()


async def outcome(call: Awaitable[Any]) -> object:
    """Return the results of a wait and whether the service stopped, or the exception."""
    try:
        found = await call
    except Exception as error:
        return repr(error)
    return found.results, found.stopped


@KINDS
@pytest.mark.parametrize("steps", [0, 1, 4])
async def test_the_first_result_is_returned(kind: type[Any], steps: int) -> None:
    """A coroutine that suspends, or does not, gives the same answer as with Faust's own wait."""
    assert await outcome(kind().wait_first(after(steps), forever())) == (["done"], False)


@KINDS
async def test_another_coroutine_may_be_first(kind: type[Any]) -> None:
    """While the first coroutine waits, the end of another one ends the wait and cancels the first."""
    ended: list[str] = []

    async def full() -> None:
        try:
            await forever()
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    assert await outcome(kind().wait_first(full(), after(1, "suspended"))) == (["suspended"], False)
    await asyncio.sleep(0)
    assert ended == ["cancelled"]


@KINDS
@pytest.mark.parametrize("steps", [0, 1])
async def test_an_exception_is_raised(kind: type[Any], steps: int) -> None:
    """An exception of the first coroutine reaches the caller, before and after it suspended."""

    async def failing() -> None:
        await after(steps)
        raise ValueError("broken")

    assert await outcome(kind().wait_first(failing(), forever())) == "ValueError('broken')"


@KINDS
@pytest.mark.parametrize("end", [lambda s: s._stopped.set(), lambda s: s._crashed.set()], ids=["stopped", "crashed"])
async def test_a_stopped_service_reports_it(kind: type[Any], end: Callable[[Any], None]) -> None:
    """In a service that stopped or crashed the coroutine still runs, but no result is returned."""
    service, ran = kind(), []

    async def message() -> None:
        ran.append(True)

    end(service)
    assert await outcome(service.wait_first(message(), forever())) == ([], True)
    assert ran == [True]


@KINDS
async def test_a_cancelled_wait_cancels_the_coroutine(kind: type[Any]) -> None:
    """Cancelling the wait cancels what it waits for, which may then clean up."""
    ended: list[str] = []

    async def message() -> None:
        try:
            await forever()
        finally:
            await asyncio.sleep(0)
            ended.append("cleaned up")

    task = asyncio.create_task(kind().wait_first(message(), forever()))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert ended == ["cleaned up"]


async def test_a_coroutine_that_does_not_suspend_needs_no_task() -> None:
    """The usual case starts no task, and leaves no coroutine that Python would warn of."""
    before = asyncio.all_tasks()
    service, seen = Eager(), set[Any]()

    async def message() -> str:
        seen.update(asyncio.all_tasks() - before)
        return "done"

    assert await outcome(service.wait_first(message(), forever())) == (["done"], False)
    assert seen == set()
    gc.collect()  # a coroutine that was never awaited warns when it is collected, and a warning fails the test
