"""Runs untrusted work in child processes, so that a hostile input costs one task, not the worker.

The child runs one importable function, `def f(args: dict, data: bytes) -> tuple[dict, list[bytes]]`, for many tasks.
Parent and child exchange length-prefixed JSON and raw bytes over one socket, never pickle: a compromised child can
only return a false result. `streams.sandbox.child` limits its memory, CPU time, files and environment; the parent
limits its wall time, and it exits with its parent.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from streams.sandbox.child import frame_header

if TYPE_CHECKING:
    from pydantic import JsonValue

HEADER_LIMIT = 1 << 20  # bytes of JSON one frame may carry
_KILLED_BY_TIME = (-signal.SIGXCPU,)
_KILLED_BY_MEMORY = (-signal.SIGKILL,)  # not sent by the parent, so by the kernel's out-of-memory killer

log = structlog.get_logger(__name__)


class SandboxError(Exception):
    """The task has no result. The sandbox stays usable: the next task gets a new child if needed.

    `retryable`: the child exited or hung without a result, so the cause may be outside the input: low memory, a signal.
    """

    def __init__(self, message: str, *, retryable: bool = False) -> None:
        super().__init__(message)
        self.retryable = retryable


class SandboxRefused(SandboxError):
    """The function rejected the input: it raised an exception with string attributes `code` and `message`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class SandboxFailed(SandboxError):
    """The function raised another exception or its result is invalid: a bug. The text ends in the child's traceback."""


class SandboxCrashed(SandboxError):
    """The child exited during the task: a segmentation fault, an abort, an exit."""


class SandboxTimeout(SandboxError):
    """The task exceeded its CPU time or its wall time."""


class SandboxMemory(SandboxError):
    """The task exceeded its memory limit."""


class SandboxUnavailable(SandboxError):
    """No child could be started, or the sandbox is closing. Unrelated to the input; a retry may help."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Resource limits of one child."""

    memory_mb: int = 1536  # private memory (RLIMIT_DATA): heap and anonymous maps, not mapped libraries
    cpu_s: int = 30  # CPU seconds of one task
    wall_s: float = 60.0  # seconds from sending a task to its whole result
    start_s: float = 60.0  # seconds a child may take to import the function
    answer_mb: int = 512  # MB of one result's blobs
    niceness: int = 5  # added to the parent's
    tasks: int = 200  # tasks after which a child is replaced, which bounds leaks and fragmentation
    open_files: int = 64


class Sandbox:
    """A fixed number of warm children running one function. Use as an async context manager, in one event loop."""

    def __init__(self, function: str, *, workers: int = 1, limits: Limits | None = None) -> None:
        """`function` is "package.module:name"; `workers` tasks run concurrently, further ones queue."""
        self._function = function
        self._limits = limits or Limits()
        self._workers = workers
        self._idle: asyncio.Queue[_Child | None] = asyncio.Queue()
        self._children: set[_Child] = set()
        self._closed = False

    async def __aenter__(self) -> Sandbox:
        """Start all children and wait until each has imported the function. Raises SandboxUnavailable."""
        try:
            children = [self._start() for _ in range(self._workers)]
            for child in children:
                await child.ready()
                self._idle.put_nowait(child)
        except BaseException:
            self.close()
            for child in self._children:  # those not idle yet
                child.release()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every child; running tasks raise SandboxUnavailable."""
        self._closed = True
        for child in self._children:
            child.kill()
        while not self._idle.empty():
            if child_or_none := self._idle.get_nowait():
                child_or_none.release()

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

    def _renewed(self, child: _Child | None) -> _Child | None:
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

    def _start(self) -> _Child:
        try:
            child = _Child(self._function, self._limits)
        except OSError as error:
            raise SandboxUnavailable(f"cannot start a child process: {error}") from error
        self._children.add(child)
        return child


class _Child:
    """One child process and the parent's end of its socket."""

    def __init__(self, function: str, limits: Limits) -> None:
        self._limits = limits
        self._tasks = 0
        self._is_ready = False
        self.spent = False
        self._socket, theirs = socket.socketpair()
        self._socket.setblocking(False)
        with theirs:
            self._process = subprocess.Popen(
                (sys.executable, "-P", "-m", "streams.sandbox.child", function, json.dumps(asdict(limits))),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=_environment(),
                cwd="/",
                close_fds=True,
                start_new_session=True,  # Ctrl-C reaches only the parent, which finishes running tasks
            )
        self.pid = self._process.pid

    def kill(self) -> None:
        """Kill the process."""
        self.spent = True
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Close the parent's socket, once no task awaits it."""
        self._socket.close()

    async def ready(self) -> None:
        """Wait until the function is imported. Raises SandboxUnavailable with the child's error."""
        if self._is_ready:
            return
        try:
            async with asyncio.timeout(self._limits.start_s):
                header, _ = await self._receive()
        except (TimeoutError, OSError, EOFError, ValueError) as error:
            self.spent = True
            raise SandboxUnavailable(f"the child did not start: {error or type(error).__name__}") from error
        if header.get("status") != "ready":
            self.spent = True
            raise SandboxUnavailable(f"the child did not start: {header.get('message')}")
        self._is_ready = True

    async def run(self, args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
        """Send one task and return its result."""
        try:
            await self.ready()
            async with asyncio.timeout(self._limits.wall_s):
                header, blobs = await self._exchange(args, data)
        except TimeoutError as error:
            self.spent = True
            raise SandboxTimeout(f"no result within {self._limits.wall_s:g} s", retryable=True) from error
        except (EOFError, ConnectionError) as error:
            raise await self._post_mortem() from error
        except ValueError as error:
            self.spent = True
            raise SandboxFailed(f"the child's result is invalid: {error}") from error
        except BaseException:
            self.spent = True
            raise
        self._tasks += 1
        self.spent = self._tasks >= self._limits.tasks
        return self._result(header, blobs)

    def _result(self, header: dict[str, JsonValue], blobs: list[bytes]) -> tuple[dict[str, JsonValue], list[bytes]]:
        status, result, message = header.get("status"), header.get("result"), str(header.get("message", ""))
        if status == "ok" and isinstance(result, dict):
            return result, blobs
        if status == "refused":
            raise SandboxRefused(str(header.get("code", "")), message)
        self.spent = True  # after a failure heap and libraries are in an unknown state
        if status == "memory":
            raise SandboxMemory(f"the task exceeded {self._limits.memory_mb} MB of memory")
        raise SandboxFailed(message or "the child sent an invalid header")

    async def _exchange(self, args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, frame_header({"args": args, "blobs": [len(data)]}))
        await loop.sock_sendall(self._socket, data)
        return await self._receive()

    async def _receive(self) -> tuple[dict[str, JsonValue], list[bytes]]:
        size = int.from_bytes(await self._exactly(4), "big")
        if size > HEADER_LIMIT:
            raise ValueError("header too long")
        try:
            header = json.loads(bytes(await self._exactly(size)))
        except RecursionError as error:
            raise ValueError("header nested too deeply") from error
        sizes = header.get("blobs", []) if isinstance(header, dict) else None
        if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError("invalid header")
        if sum(sizes) > self._limits.answer_mb << 20:
            raise ValueError(f"larger than {self._limits.answer_mb} MB")
        return header, [bytes(await self._exactly(size)) for size in sizes]

    async def _exactly(self, size: int) -> bytearray:
        loop, buffer = asyncio.get_running_loop(), bytearray(size)
        view, filled = memoryview(buffer), 0
        while filled < size:
            count = await loop.sock_recv_into(self._socket, view[filled:])
            if count == 0:
                raise EOFError("the child closed its socket")
            filled += count
        return buffer

    async def _post_mortem(self) -> SandboxError:
        """Return the error for a child that closed its socket, from its exit status."""
        self.spent = True
        try:
            status = await asyncio.to_thread(self._process.wait, 2.0)
        except subprocess.TimeoutExpired:
            return SandboxCrashed("the child closed its socket", retryable=True)
        if status in _KILLED_BY_TIME:
            return SandboxTimeout(f"the task exceeded {self._limits.cpu_s} s of CPU time")
        if status in _KILLED_BY_MEMORY:
            return SandboxMemory("the system killed the child, probably because of its memory use", retryable=True)
        return SandboxCrashed(f"the child exited with status {status}", retryable=True)


def _environment() -> dict[str, str]:
    """Return the child's environment, which contains no secrets."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",  # the child cannot write files
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # each thread reserves memory
        "MALLOC_ARENA_MAX": "2",
    }
