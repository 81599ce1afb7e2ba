"""`darkroom up`: the embedded system until SIGTERM; `darkroom agent A B …`: several supervised agents."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from darkroom.local.private_folder import private_folder
from darkroom.local.system import SystemPlan, running_system
from infra.local.log_rotation import keep_rotated
from infra.local.ports import is_free
from infra.local.service import FolderInUse, ServiceFailed
from infra.local.supervisor import Supervisor
from infra.local.tools import InstallFailed, MissingTool
from streams.errors import DependencyUnavailable, NotReady
from streams.process.signals import until_signal

CANNOT_START = (MissingTool, InstallFailed, ServiceFailed, FolderInUse, NotReady, DependencyUnavailable)


def say(text: str) -> None:
    """Write a progress line to stderr."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


async def stay_up(plan: SystemPlan) -> int:
    """Run the system until SIGTERM or SIGINT; return the exit code."""
    if plan.port and not is_free(plan.port, plan.host):
        say(f"Port {plan.port} of {plan.host} is in use. Choose another, as in `make up PORT=8081`.")
        return 2
    signalled = asyncio.create_task(until_signal())
    is_up = asyncio.Event()
    serving = asyncio.create_task(_serve(plan, signalled, is_up))
    await asyncio.wait({signalled, serving}, return_when=asyncio.FIRST_COMPLETED)
    try:
        # A signal cancels a start that may be waiting; it never cancels the shutdown.
        if not is_up.is_set():
            serving.cancel()
        await serving
    except asyncio.CancelledError:
        return 0
    except CANNOT_START as error:
        say(str(error))
        return 1
    return 0


async def _serve(plan: SystemPlan, signalled: asyncio.Task[None], is_up: asyncio.Event) -> None:
    async with running_system(plan, say) as system:
        await system.until_ready(say)
        is_up.set()
        say(
            f"Darkroom is up at {system.url}; docs: {system.url}/docs; logs: {system.folder / 'logs'}. Ctrl-C stops it."
        )
        await asyncio.shield(signalled)


async def stay_up_agents(names: tuple[str, ...]) -> int:
    """Run several agents as supervised processes, on the services of the settings."""
    folder = await private_folder(Path(".darkroom")) / "logs"
    await asyncio.to_thread(folder.mkdir, exist_ok=True)
    rotating = asyncio.create_task(keep_rotated(lambda: folder.glob("*.log")))
    async with Supervisor(on_change=lambda state: say(f"{state.name}: {state.state}")) as supervisor:
        for name in names:
            supervisor.start(name, [sys.executable, "-m", "darkroom", "agent", name], log_file=folder / f"{name}.log")
        await until_signal()
    rotating.cancel()
    return 0
