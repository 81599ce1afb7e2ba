"""Keeps named commands running: restarts exited processes with back-off, and stops all at exit."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Literal, Self

from infra.local.process import Child
from infra.local.service import LocalService, ServiceFailed
from infra.local.tools import Say, say_to_stderr

Clock = Callable[[], float]
Sleep = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses before a restart, in seconds: doubling from `first_s` to `most_s`; reset by a run of `healthy_s`."""

    first_s: float = 1.0
    most_s: float = 30.0
    healthy_s: float = 60.0

    def after(self, pause_s: float) -> float:
        """Return the pause after one of `pause_s` seconds; 0 means none so far."""
        return min(pause_s * 2, self.most_s) if pause_s else self.first_s


@dataclass(frozen=True, slots=True)
class ChildState:
    """The state of a child. `exit_code` is of its last exit; negative: the signal that ended it."""

    name: str
    state: Literal["running", "backoff", "stopped"]
    log_file: Path
    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = None


@dataclass(frozen=True, slots=True)
class _Program:
    name: str
    command: tuple[str, ...]
    env: dict[str, str] | None
    log_file: Path
    tier: int
    grace_s: float


class Supervisor:
    """Runs named commands; use `async with`, or `start` and `stop`.

    Use it on the main thread's event loop. If this process is killed, the kernel kills the children.
    `on_change` is called on the event loop for every state change; it must not raise.
    """

    def __init__(
        self,
        *,
        backoff: Backoff | None = None,
        on_change: Callable[[ChildState], None] | None = None,
        clock: Clock | None = None,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        self._backoff = backoff or Backoff()
        self._on_change = on_change
        self._clock = clock
        self._sleep = sleep
        self._programs: dict[str, _Program] = {}
        self._states: dict[str, ChildState] = {}
        self._children: dict[str, Child] = {}
        self._watchers: dict[str, asyncio.Task[None]] = {}
        self._signalled = asyncio.Event()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def start(
        self,
        name: str,
        command: Sequence[str],
        *,
        log_file: Path,
        env: Mapping[str, str] | None = None,
        tier: int | None = None,
        grace_s: float = 45.0,
    ) -> None:
        """Start a command and keep it running. `env` None: the environment of this process.

        Children stop in reverse order of their start; those of one `tier` stop together, higher tiers first. `grace_s`
        is the time between SIGTERM and SIGKILL. Raises ValueError if the name is in use.
        """
        if name in self._programs:
            raise ValueError(f"{name} is already supervised")
        own_tier = len(self._programs) if tier is None else tier
        program = _Program(name, tuple(command), None if env is None else dict(env), log_file, own_tier, grace_s)
        self._programs[name] = program
        self._states[name] = ChildState(name, "stopped", log_file)
        self._watchers[name] = asyncio.create_task(self._keep_running(program), name=f"supervise {name}")

    def states(self) -> dict[str, ChildState]:
        """Return the states of all children, in start order."""
        return dict(self._states)

    def state(self, name: str) -> ChildState:
        """Return the state of one child."""
        return self._states[name]

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to a child; it is restarted if it exits."""
        if name in self._children:
            self._children[name].signal(number)

    async def stop(self) -> None:
        """Stop all children, higher tiers first. Stopping twice is harmless."""
        order = sorted(self._programs.values(), key=lambda program: program.tier, reverse=True)
        for _, together in groupby(order, key=lambda program: program.tier):
            await asyncio.gather(*(self._stop(program) for program in together))

    def stop_on_signals(self) -> None:
        """Make `run` return on SIGTERM and SIGINT; main thread only."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._signalled.set)

    async def run(self) -> None:
        """Wait for SIGTERM or SIGINT; then leave the `async with`, or call `stop`."""
        self.stop_on_signals()
        await self._signalled.wait()

    async def _keep_running(self, program: _Program) -> None:
        pause_s = 0.0
        while True:
            started = self._now()
            try:
                child = Child(program.command, log_file=program.log_file, env=program.env)
            except OSError as error:  # no memory or no process slot: may be temporary
                self._set(program.name, state="backoff", pid=None, exit_code=error.errno)
            else:
                self._children[program.name] = child
                self._set(program.name, state="running", pid=child.pid)
                code = await child.wait()
                child.kill()  # the rest of its process group
                self._set(program.name, state="backoff", pid=None, exit_code=code)
            if self._now() - started >= self._backoff.healthy_s:
                pause_s = 0.0
            pause_s = self._backoff.after(pause_s)
            await self._sleep(pause_s)
            self._set(program.name, restarts=self._states[program.name].restarts + 1)

    async def _stop(self, program: _Program) -> None:
        watcher = self._watchers.pop(program.name, None)
        if watcher is None:
            return
        watcher.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watcher
        child = self._children.pop(program.name, None)
        code = await child.stop(program.grace_s) if child else None
        self._set(program.name, state="stopped", pid=None, exit_code=code)

    def _now(self) -> float:
        return self._clock() if self._clock else asyncio.get_running_loop().time()

    def _set(
        self,
        name: str,
        *,
        state: Literal["running", "backoff", "stopped"] | None = None,
        pid: int | None = None,
        restarts: int | None = None,
        exit_code: int | None = None,
    ) -> None:
        old = self._states[name]
        new = replace(
            old,
            state=state or old.state,
            pid=pid,
            restarts=old.restarts if restarts is None else restarts,
            exit_code=old.exit_code if exit_code is None else exit_code,
        )
        self._states[name] = new
        if self._on_change and new != old:
            self._on_change(new)


async def keep_running(
    service: LocalService, *, backoff: Backoff | None = None, say: Say = say_to_stderr, sleep: Sleep = asyncio.sleep
) -> None:
    """Restart a service at its address and with its data whenever its process exits, until cancelled."""
    backoff = backoff or Backoff()
    loop = asyncio.get_running_loop()
    pause_s, started = 0.0, loop.time()
    while True:
        code = await service.wait()
        pause_s = backoff.after(0.0 if loop.time() - started >= backoff.healthy_s else pause_s)
        say(f"{service.name} exited with {code}; restarting in {pause_s:g} s")
        await sleep(pause_s)
        started = loop.time()
        try:
            await service.restart()
        except ServiceFailed as failure:
            say(str(failure))
