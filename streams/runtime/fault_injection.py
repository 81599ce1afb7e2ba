"""Fault injection for tests: kill or stop this process at a named point of an event's processing."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path

from schemas.events.envelope import Record
from streams.runtime.execution import Hook


def fault_injection_hook() -> Hook:
    """Return the hook of the fault tests: DARKROOM_STRIKE=point:count kills this process at the count-th passage.

    Points: before-work, after-object, after-produce, before-commit. With point:count:stop it is stopped there, until
    somebody sends SIGCONT. DARKROOM_STRIKE=@FILE reads the point from that file once it is there, and removes it: so a
    process is struck that runs already.
    """
    asked = os.environ.get("DARKROOM_STRIKE", "")
    if asked.startswith("@"):
        return _strike_on_demand(Path(asked[1:]))
    point, count, how = (*asked.split(":"), "", "")[:3]
    left, number = int(count or "1") if point else 0, signal.SIGSTOP if how == "stop" else signal.SIGKILL

    async def hook(passed: str, _record: Record) -> None:
        nonlocal left
        if passed != point or left <= 0:
            return
        left -= 1
        if left == 0:
            os.kill(os.getpid(), number)

    return hook


def _strike_on_demand(file: Path) -> Hook:
    def strike(passed: str) -> None:
        # Between the look and the removal another worker of the agent may have been struck: then this one is spared.
        with suppress(FileNotFoundError):
            if file.read_text().strip() == passed:
                file.unlink()
                os.kill(os.getpid(), signal.SIGKILL)

    async def hook(passed: str, _record: Record) -> None:
        strike(passed)

    return hook
