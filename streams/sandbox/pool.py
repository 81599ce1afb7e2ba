"""Untrusted work in child processes: whatever a hostile input does to its decoder costs one task, not the worker.

The child runs one importable function, `def f(args: dict, data: bytes) -> tuple[dict, list[bytes]]`, again and again.
Parent and child talk over one socket in length-prefixed JSON and raw bytes, never pickle: a child that was taken
over can lie in its answer, and no more. Its memory, CPU time, files and environment are bounded (child_main), its
wall time is the parent's to end, and it dies with its parent.
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
_KILLED_BY_MEMORY = (-signal.SIGKILL,)  # not by us: then it is the kernel's out-of-memory killer

log = structlog.get_logger(__name__)


class SandboxError(Exception):
    """The task gave no result. The sandbox itself is well: the next task gets a fresh child if it needs one.

    `doubtful`: the child said nothing, so perhaps something else ended or held it: short memory, a stray signal.
    """

    def __init__(self, message: str, *, doubtful: bool = False) -> None:
        super().__init__(message)
        self.doubtful = doubtful


class SandboxRefused(SandboxError):
    """The function refused the input: it raised an exception with a text `code` and `message`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


class SandboxFailed(SandboxError):
    """The function raised something else, or answered nonsense: a bug. The text ends in the child's traceback."""


class SandboxCrashed(SandboxError):
    """The child ended in mid-task: a segmentation fault, an abort, an exit."""


class SandboxTimeout(SandboxError):
    """The task used up its CPU time or its wall time."""


class SandboxMemory(SandboxError):
    """The task needed more memory than it may have."""


class SandboxUnavailable(SandboxError):
    """No child could be had, or the sandbox is closing: nothing is known of the input, trying again may help."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one child may use."""

    memory_mb: int = 1536  # private memory (RLIMIT_DATA): heap and anonymous maps, not mapped libraries
    cpu_s: int = 30  # CPU seconds of one task
    wall_s: float = 60.0  # seconds from handing a task over to its whole answer
    start_s: float = 60.0  # seconds a child may take to import the function
    answer_mb: int = 512  # bytes of one answer's blobs
    niceness: int = 5  # added to the parent's
    tasks: int = 200  # a child is replaced after so many: leaks and fragmentation end with it
    open_files: int = 64


class Sandbox:
    """A fixed number of warm children running one function. Use as an async context manager, in one event loop."""

    def __init__(self, function: str, *, workers: int = 1, limits: Limits | None = None) -> None:
        """`function` is "package.module:name"; `workers` tasks run at once, further ones wait their turn."""
        self._function = function
        self._limits = limits or Limits()
        self._workers = workers
        self._idle: asyncio.Queue[_Child | None] = asyncio.Queue()
        self._children: set[_Child] = set()
        self._closed = False

    async def __aenter__(self) -> Sandbox:
        """Start all children and wait until each has imported the function. Raises SandboxUnavailable if one cannot."""
        try:
            children = [self._start() for _ in range(self._workers)]
            for child in children:
                await child.ready()
                self._idle.put_nowait(child)
        except BaseException:
            self.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill every child; tasks that still run end with SandboxUnavailable."""
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
        """Run the function on one input. Raises a SandboxError; cancelling kills the child that was at it.

        What a child answers is final; after a doubtful end a fresh child is given the input, `tries` in all.
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
                    if self._closed:  # we ended the child ourselves: the input is not to blame
                        raise SandboxUnavailable("the sandbox is closing") from error
                    if tries <= 0 or not error.doubtful:
                        raise
                    log.warning("a child ended without a word; its input goes to a fresh one", error=str(error))
                child = self._renewed(child)
        finally:
            self._idle.put_nowait(self._renewed(child))

    def _renewed(self, child: _Child | None) -> _Child | None:
        """Return the child if it can go on, else a fresh one, which warms up while nobody waits."""
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
            raise SandboxUnavailable(f"no process to be had: {error}") from error
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
                start_new_session=True,  # Ctrl-C in a terminal is for the parent, which lets running tasks finish
            )
        self.pid = self._process.pid

    def kill(self) -> None:
        """End the process, whatever it is doing."""
        self.spent = True
        self._process.kill()
        self._process.wait()

    def release(self) -> None:
        """Close the parent's end, once nobody waits on it."""
        self._socket.close()

    async def ready(self) -> None:
        """Wait until the function is imported. Raises SandboxUnavailable with the child's own words if it cannot be."""
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
        """Hand over one task and wait for its answer."""
        try:
            await self.ready()
            async with asyncio.timeout(self._limits.wall_s):
                header, blobs = await self._exchange(args, data)
        except TimeoutError as error:
            self.spent = True
            raise SandboxTimeout(f"no answer within {self._limits.wall_s:g} s", doubtful=True) from error
        except (EOFError, ConnectionError) as error:
            raise await self._post_mortem() from error
        except ValueError as error:
            self.spent = True
            raise SandboxFailed(f"the child's answer cannot be read: {error}") from error
        except BaseException:
            self.spent = True
            raise
        self._tasks += 1
        self.spent = self._tasks >= self._limits.tasks
        return self._judge(header, blobs)

    def _judge(self, header: dict[str, JsonValue], blobs: list[bytes]) -> tuple[dict[str, JsonValue], list[bytes]]:
        status, result, message = header.get("status"), header.get("result"), str(header.get("message", ""))
        if status == "ok" and isinstance(result, dict):
            return result, blobs
        if status == "refused":
            raise SandboxRefused(str(header.get("code", "")), message)
        self.spent = True  # its heap may be full, its libraries in any state
        if status == "memory":
            raise SandboxMemory(f"more than {self._limits.memory_mb} MB of memory needed")
        raise SandboxFailed(message or "the child answered nonsense")

    async def _exchange(self, args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
        loop = asyncio.get_running_loop()
        await loop.sock_sendall(self._socket, frame_header({"args": args, "blobs": [len(data)]}))
        await loop.sock_sendall(self._socket, data)
        return await self._receive()

    async def _receive(self) -> tuple[dict[str, JsonValue], list[bytes]]:
        size = int.from_bytes(await self._exactly(4), "big")
        if size > HEADER_LIMIT:
            raise ValueError("its header is too long")
        try:
            header = json.loads(bytes(await self._exactly(size)))
        except RecursionError as error:
            raise ValueError("its header is too deep") from error
        sizes = header.get("blobs", []) if isinstance(header, dict) else None
        if not isinstance(sizes, list) or not all(type(size) is int and size >= 0 for size in sizes):
            raise ValueError("its header is not one")
        if sum(sizes) > self._limits.answer_mb << 20:
            raise ValueError(f"it is larger than {self._limits.answer_mb} MB")
        return header, [bytes(await self._exactly(size)) for size in sizes]

    async def _exactly(self, size: int) -> bytearray:
        loop, buffer = asyncio.get_running_loop(), bytearray(size)
        view, filled = memoryview(buffer), 0
        while filled < size:
            count = await loop.sock_recv_into(self._socket, view[filled:])
            if count == 0:
                raise EOFError("the child closed its end")
            filled += count
        return buffer

    async def _post_mortem(self) -> SandboxError:
        """Say why the child ended. It closed its socket, so it is ending or ours to end."""
        self.spent = True
        ours = False
        try:
            status = await asyncio.to_thread(self._process.wait, 2.0)
        except subprocess.TimeoutExpired:
            ours, status = True, 0
        if status in _KILLED_BY_TIME:
            return SandboxTimeout(f"more than {self._limits.cpu_s} s of CPU time used")
        if status in _KILLED_BY_MEMORY:
            return SandboxMemory("the system killed the child, most likely for its memory", doubtful=True)
        how = "the child closed its socket" if ours else f"the child ended with status {status}"
        return SandboxCrashed(how, doubtful=True)


def _environment() -> dict[str, str]:
    """Return the little a child may know of our environment: secrets stay here."""
    return {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "PYTHONPATH": os.pathsep.join(str(Path(entry).absolute()) for entry in sys.path),
        "PYTHONDONTWRITEBYTECODE": "1",  # files are forbidden to it
        "PYTHONNOUSERSITE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",  # each further thread reserves memory
        "MALLOC_ARENA_MAX": "2",
    }
