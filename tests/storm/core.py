"""The core (`darkroom core`) with a read model that can be made slow, failing or away: as a Qdrant server would be.

In process there is no network to break, so every call first looks into the file named by DARKROOM_STORM_READ_MODEL:
`away`, `slow` or `errors` (one call in five); no file, no trouble. At its start it reads more settings from the file
named by DARKROOM_STORM_SETTINGS, if there is one: so it can be started anew with others.
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
from streams.read_model import qdrant_embedded
from streams.settings import QdrantSettings

FILE_VARIABLE = "DARKROOM_STORM_READ_MODEL"
SETTINGS_VARIABLE = "DARKROOM_STORM_SETTINGS"
SLOW_S = 1.0
ERROR_EVERY = 5


class ToxicReadModel:
    """A ReadModel that does what another does, after the trouble its file names."""

    def __init__(self, real: object, file: Path) -> None:
        self._real = real
        self._file = file
        self._calls = count(1)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        return self._troubled(found) if asyncio.iscoroutinefunction(found) else found

    def _troubled(self, call: Callable[..., Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def troubled(*arguments: Any, **named: Any) -> object:
            trouble = ""
            with suppress(FileNotFoundError):
                trouble = self._file.read_text().strip()
            if trouble == "slow":
                await asyncio.sleep(SLOW_S)
            if trouble == "away" or (trouble == "errors" and next(self._calls) % ERROR_EVERY == 0):
                raise DependencyUnavailable(f"the read model is {trouble}: a fault of the storm")
            return await call(*arguments, **named)

        return troubled


def _poisoned(opened: Callable[[QdrantSettings], AbstractAsyncContextManager[Any]]) -> Callable[[QdrantSettings], Any]:
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
    # Below the breakers, where a server's trouble would be.
    qdrant_embedded.open_local_read_model = _poisoned(qdrant_embedded.open_local_read_model)  # type: ignore[assignment]
    sys.exit(run_gateway("core"))
