"""Faust's waits without tasks, where what it waits for does not suspend.

For each message, Faust's consumer waits for the message's callback or for a suspension of the flow, whichever comes
first (`Service.wait_first`), at the cost of four tasks. The callback only puts the message into a buffer, and suspends
only while that is full.
"""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Generator, Iterable
from typing import Any

from mode.services import WaitResults


class EagerWaits:
    """Mixin for a Faust service: `wait_first` runs its first coroutine at once, and makes tasks only if it suspends."""

    _stopped: Any
    _crashed: Any

    async def wait_first(self, *coros: Any, timeout: Any = None) -> Any:  # noqa: ASYNC109 - Faust's signature
        """See Service.wait_first."""
        first, *others = coros
        if inspect.iscoroutine(first):
            try:
                awaited = first.send(None)
            except StopIteration as finished:
                _close(others)
                stopped = self._stopped.is_set() or self._crashed.is_set()
                return WaitResults([], [], True) if stopped else WaitResults([first], [finished.value], False)
            except BaseException:
                _close(others)
                raise
            first = _Started(first, awaited)
        return await super().wait_first(first, *others, timeout=timeout)  # type: ignore[misc]


def _close(awaitables: Iterable[Any]) -> None:
    """Close coroutines that never ran: Python warns of those that are dropped."""
    for one in awaitables:
        if inspect.iscoroutine(one):
            one.close()


class _Started:
    """The rest of a coroutine that has run until it first suspended, as an awaitable."""

    def __init__(self, coroutine: Coroutine[Any, Any, Any], awaited: Any) -> None:
        self._coroutine = coroutine
        self._awaited = awaited  # what the coroutine gave the event loop

    def __await__(self) -> Generator[Any, Any, Any]:
        awaited = self._awaited
        try:
            while True:
                try:
                    value = yield awaited
                except BaseException as error:  # a cancellation
                    awaited = self._coroutine.throw(error)
                else:
                    awaited = self._coroutine.send(value)
        except StopIteration as finished:
            return finished.value
