"""Fault injection for tests: kills or stops this process at a named point of an event's processing."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from schemas.events.envelope import Record
from streams.runtime.execution import Hook


def fault_injection_hook() -> Hook:
    """Return the hook of the fault tests: DARKROOM_STRIKE=point:count kills this process the count-th time it is there.

    Points: before-work, after-object, after-produce, before-commit. point:count:stop sends SIGSTOP instead.
    DARKROOM_STRIKE=@FILE targets a running process: it reads the point from the file once that exists, and removes it.
    """
    variable = os.environ.get("DARKROOM_STRIKE", "")
    if variable.startswith("@"):
        return _kill_on_demand(Path(variable[1:]))
    point, count, how = (*variable.split(":"), "", "")[:3]
    left, number = int(count or "1") if point else 0, signal.SIGSTOP if how == "stop" else signal.SIGKILL

    async def hook(reached: str, _record: Record) -> None:
        nonlocal left
        if reached != point or left <= 0:
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

    return hook


def _kill_on_demand(file: Path) -> Hook:
    def kill(reached: str) -> None:
        # FileNotFoundError: no fault requested, or another worker of the agent took it between read and unlink.
        with suppress(FileNotFoundError):
            if file.read_text().strip() == reached:
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    async def hook(reached: str, _record: Record) -> None:
        kill(reached)

    return hook
