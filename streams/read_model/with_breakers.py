"""A ReadModel behind circuit breakers: after repeated failures calls are refused at once.

Reads and writes have one each, because a full disk can still be read.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, cast

from streams.concurrency.circuit_breaker import Breakers
from streams.read_model.protocol import ReadModel

READS = "read-model"
WRITES = "read-model-writes"
_WRITING = frozenset({"begin", "update", "write_tombstone", "purge"})
_READING = frozenset(
    {"get", "history", "find", "page", "search_vector", "search_words", "vector_of", "uses_of", "count", "scan"}
)
_PROBE = "00000000-0000-7000-8000-000000000000"  # no image's id: a probe writes and purges its tombstone


class BreakingReadModel:
    """A ReadModel that raises DependencyUnavailable at once while a breaker is open, with the remaining seconds."""

    def __init__(self, inner: ReadModel, breakers: Breakers) -> None:
        self._inner = inner
        self._reads = breakers.add(READS, self.check)
        self._writes = breakers.add(WRITES, self._check_writes)

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        """Return a call of the inner read model, behind its breaker."""
        if name not in _WRITING | _READING:
            raise AttributeError(name)
        breaker = self._writes if name in _WRITING else self._reads

        async def passing(*arguments: Any, **named: Any) -> Any:
            with breaker.passing():
                return await getattr(self._inner, name)(*arguments, **named)

        return passing

    async def check(self) -> None:
        """Check the inner read model, and let its breaker know."""
        with self._reads.probing():
            await self._inner.check()

    async def _check_writes(self) -> None:
        with self._writes.probing():
            await self._inner.write_tombstone(_PROBE, "probe", 1)
            await self._inner.purge(_PROBE, 1)


def behind(breakers: Breakers, model: ReadModel) -> ReadModel:
    """Return a read model behind breakers, which are added."""
    return cast(ReadModel, BreakingReadModel(model, breakers))


@asynccontextmanager
async def open_breaking(model: AbstractAsyncContextManager[ReadModel], breakers: Breakers) -> AsyncIterator[ReadModel]:
    """Open a read model behind breakers."""
    async with model as inner:
        try:
            yield behind(breakers, inner)
        finally:
            breakers.remove(READS)
            breakers.remove(WRITES)
