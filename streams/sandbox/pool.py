"""Runs untrusted work in child processes, so that a hostile input costs one task, not the worker.

The child runs one importable function, `def f(args: dict, data: bytes) -> tuple[dict, list[bytes]]`, for many tasks.
Parent and child exchange length-prefixed JSON and raw bytes over one socket, never pickle. The child limits its memory
and CPU time, exits with its parent, and gives up files, sockets, programs, other processes and privileges
(`streams.sandbox.containment`); the parent limits its wall time. So a child that runs an attacker's code can only
return a false result, on a kernel that has every part: `Sandbox.missing` names the others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import structlog

from streams.sandbox.child_process import ChildProcess, Limits
from streams.sandbox.errors import SandboxError, SandboxUnavailable

if TYPE_CHECKING:
    from pydantic import JsonValue

log = structlog.get_logger(__name__)


class Sandbox:
    """A fixed number of warm children running one function. Use as an async context manager, in one event loop."""

    def __init__(self, function: str, *, workers: int = 1, limits: Limits | None = None, require: bool = False) -> None:
        """`function` is "package.module:name"; `workers` tasks run concurrently, further ones queue.

        With `require`, a child that lacks a part of the confinement runs no task.
        """
        self.missing: tuple[str, ...] = ()  # parts of the confinement that this system lacks, known once entered
        self._function = function
        self._limits = limits or Limits()
        self._workers = workers
        self._require = require
        self._idle: asyncio.Queue[ChildProcess | None] = asyncio.Queue()
        self._children: set[ChildProcess] = set()
        self._closed = False

    async def __aenter__(self) -> Sandbox:
        """Start all children and wait until each has imported the function.

        Raises SandboxUnavailable, and may be entered again after that.
        """
        self._closed = False
        self._idle = asyncio.Queue()
        try:
            children = [self._start() for _ in range(self._workers)]
            for child in children:
                await child.ready()
                self._idle.put_nowait(child)
        except BaseException:
            self.close()
            for child in self._children:  # those not idle yet
                child.release()
            self._children.clear()
            raise
        self.missing = tuple(sorted({part for child in children for part in child.missing}))
        if self.missing:
            log.warning("sandbox not fully confined by this system", missing=self.missing, function=self._function)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every child; running and queued tasks raise SandboxUnavailable."""
        self._closed = True
        for child in self._children:
            child.kill()
        while not self._idle.empty():
            if child_or_none := self._idle.get_nowait():
                child_or_none.release()
        self._idle.put_nowait(None)  # wakes one queued task, which wakes the next

    def confinement(self) -> str:
        """Return how far this system confines the children, for health reports."""
        return f"not confined by {', '.join(self.missing)}" if self.missing else "fully confined"

    def pids(self) -> tuple[int, ...]:
        """Return the process ids of the children."""
        return tuple(child.pid for child in self._children)

    async def run(
        self, args: dict[str, JsonValue], data: bytes, *, tries: int = 1
    ) -> tuple[dict[str, JsonValue], list[bytes]]:
        """Run the function on one input. Raises a SandboxError; cancelling kills the child that runs the task.

        A child's result is final; after a retryable error a new child gets the input, up to `tries` tries in all.
        """
        if self._closed:
            raise SandboxUnavailable("the sandbox is closed")
        child = await self._idle.get()
        if self._closed:
            self._idle.put_nowait(None)
            raise SandboxUnavailable("the sandbox is closed")
        try:
            while True:
                tries -= 1
                child = child or self._start()
                try:
                    return await child.run(args, data)
                except SandboxError as error:
                    if self._closed:  # `close` killed the child: unrelated to the input
                        raise SandboxUnavailable("the sandbox is closing") from error
                    if tries <= 0 or not error.retryable:
                        raise
                    log.warning("sandbox child exited without a result; retrying in a new child", error=str(error))
                child = self._renewed(child)
        finally:
            self._idle.put_nowait(self._renewed(child))

    def _renewed(self, child: ChildProcess | None) -> ChildProcess | None:
        """Return the child if it is reusable, else a new one, which imports the function in the background."""
        if child is None or not child.spent:
            return child
        child.kill()
        child.release()
        self._children.discard(child)
        if self._closed:
            return None
        try:
            return self._start()
        except SandboxUnavailable:  # the next task tries again
            return None

    def _start(self) -> ChildProcess:
        try:
            child = ChildProcess(self._function, self._limits, require=self._require)
        except OSError as error:
            raise SandboxUnavailable(f"cannot start a child process: {error}") from error
        self._children.add(child)
        return child
