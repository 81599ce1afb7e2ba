"""The parent's side of one child process: its start, limits, end, and the exchange of frames with it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from streams.sandbox.child import frame_header
from streams.sandbox.errors import (
    SandboxCrashed,
    SandboxError,
    SandboxFailed,
    SandboxMemory,
    SandboxNotContained,
    SandboxRefused,
    SandboxTimeout,
    SandboxUnavailable,
)

if TYPE_CHECKING:
    from pydantic import JsonValue

HEADER_LIMIT = 1 << 20  # bytes of JSON one frame may carry
_KILLED_BY_TIME = (-signal.SIGXCPU,)
_KILLED_BY_MEMORY = (-signal.SIGKILL,)  # not sent by the parent, so by the kernel's out-of-memory killer


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


class ChildProcess:
    """One child process and the parent's end of its socket."""

    def __init__(self, function: str, limits: Limits, *, require: bool) -> None:
        self.missing: tuple[str, ...] = ()  # parts of the confinement, known once ready
        self._limits = limits
        self._require = require
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
        """Kill the process and its group: descendants, if the system could not forbid it any."""
        self.spent = True
        if self._process.poll() is None:  # not reaped, so the group's number is still its own
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()

    def release(self) -> None:
        """Close the parent's socket, once no task awaits it."""
        self._socket.close()

    async def ready(self) -> None:
        """Wait until the function is imported and the child confined. Raises SandboxUnavailable with the error."""
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
        missing = header.get("missing")
        self.missing = tuple(str(part) for part in missing) if isinstance(missing, list) else ()
        if self._require and self.missing:
            self.spent = True
            raise SandboxNotContained(
                f"this system cannot fully confine image decoders; missing: {', '.join(self.missing)}. "
                "Use a Linux kernel and a container runtime that have these, or set DARKROOM_SANDBOX__REQUIRE=false"
            )
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
        self.spent = self.spent or self._tasks >= self._limits.tasks
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
