"""`darkroom core` with an injectable read model: slow, failing or unavailable, as a Qdrant server may be.

An embedded read model has no network to break, so each call reads the fault from the file DARKROOM_STORM_READ_MODEL:
`down`, `slow` or `errors` (one call in five); without the file there is no fault. At startup the file
DARKROOM_STORM_SETTINGS adds settings, for a restart with others.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from darkroom.processes.gateways import run_gateway
from streams.errors import DependencyUnavailable
from streams.read_model import factory
from streams.settings import QdrantSettings

FILE_VARIABLE = "DARKROOM_STORM_READ_MODEL"
SETTINGS_VARIABLE = "DARKROOM_STORM_SETTINGS"
SLOW_S = 1.0
ERROR_EVERY = 5


class ToxicReadModel:
    """A read model that injects the fault named in its file before each call."""

    def __init__(self, real: object, file: Path) -> None:
        self._real = real
        self._file = file
        self._calls = count(1)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return self._with_fault(found) if asyncio.iscoroutinefunction(found) else found

    def _with_fault(self, call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def with_fault(*arguments: Any, **named: Any) -> object:
            injected = ""
            with suppress(FileNotFoundError):
                injected = self._file.read_text().strip()
            if injected == "slow":
                await asyncio.sleep(SLOW_S)
            if injected == "down" or (injected == "errors" and next(self._calls) % ERROR_EVERY == 0):
                raise DependencyUnavailable(f"injected fault: the read model is {injected}")
            return await call(*arguments, **named)

        return with_fault


def _with_faults(
    opened: Callable[[QdrantSettings], AbstractAsyncContextManager[Any]],
) -> Callable[[QdrantSettings], Any]:
    @asynccontextmanager
    async def open_toxic(settings: QdrantSettings) -> AsyncIterator[Any]:
        async with opened(settings) as real:
            yield ToxicReadModel(real, Path(os.environ[FILE_VARIABLE]))

    return open_toxic


def _more_settings(file: Path) -> None:
    with suppress(FileNotFoundError):
        os.environ.update(json.loads(file.read_text()))


if __name__ == "__main__":
    _more_settings(Path(os.environ[SETTINGS_VARIABLE]))
    # Below the circuit breakers, like faults of a server.
    factory._open = _with_faults(factory._open)  # type: ignore[assignment]
    sys.exit(run_gateway("core"))
