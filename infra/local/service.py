"""The common base of local Kafka and MinIO: a locked folder, one process, start until it answers."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from infra.local.process import Child, PidFile
from infra.local.tools import Say, say_to_stderr

_POLL_S = 0.1
_LOG_TAIL = 2000


class ServiceFailed(RuntimeError):
    """A service exited or did not answer; the message ends with the last lines of its log."""


class FolderInUse(RuntimeError):
    """Another living process runs this service in the same folder."""


class LocalService:
    """A server process with its data and log in `folder`.

    `async with` starts it, waits until it answers, and stops it. A start recovers the folder after a crash. Start it
    from a thread that outlives the service.
    """

    name: str
    grace_s: float = 20.0  # between SIGTERM and SIGKILL
    start_timeout_s: float = 90.0
    port_tries: int = 3  # another process may bind a port between the choice and the start

    def __init__(self, folder: Path, *, say: Say = say_to_stderr) -> None:
        self.folder = folder.resolve()
        self.log_file = self.folder / f"{self.name}.log"
        self._say = say
        self._pid_file = PidFile(self.folder / f"{self.name}.pid")
        self._child: Child | None = None
        self._lock: IO[str] | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int | None:
        """The process id; None if it is not running."""
        return self._child.pid if self._child and self._child.exit_code is None else None

    async def start(self) -> None:
        """Install, recover the folder, choose ports, start, and wait until it answers.

        Raises MissingTool, InstallFailed, FolderInUse or ServiceFailed; then nothing runs and nothing is locked.
        """
        await asyncio.to_thread(self._install)
        self._take_folder()
        try:
            if await self._pid_file.end_leftover():
                self._say(f"Killed a {self.name} process left by an earlier run in {self.folder}")
            self._recover()
            for tries_left in reversed(range(self.port_tries)):
                self._choose_ports()
                await self._prepare()
                try:
                    await self._launch()
                except ServiceFailed as failure:
                    if tries_left == 0 or "already in use" not in str(failure).lower():
                        raise
                else:
                    return
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Send SIGTERM, and SIGKILL after `grace_s` seconds. Stopping twice is harmless."""
        if self._child is not None:
            await self._child.stop(self.grace_s)
            self._child = None
            self._pid_file.clear()
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def kill(self) -> None:
        """Send SIGKILL; `restart` starts it again with its data."""
        if self._child is not None:
            self._child.kill()

    async def restart(self) -> None:
        """Stop it if it runs, and start it at the same address with the same data."""
        if self._child is not None:
            await self._child.stop(self.grace_s)
        await self._launch()

    async def wait(self) -> int:
        """Wait for the exit of its process; return the exit code."""
        if self._child is None:
            raise ServiceFailed(f"{self.name} was not started")
        return await self._child.wait()

    def log_tail(self) -> str:
        """Return the end of the log."""
        with contextlib.suppress(FileNotFoundError):
            return self.log_file.read_text(errors="replace")[-_LOG_TAIL:]
        return ""

    def _install(self) -> None:
        """Install the programs; may take minutes; runs in a thread."""
        raise NotImplementedError

    def _recover(self) -> None:
        """Move or remove incomplete data of a crash."""

    def _choose_ports(self) -> None:
        """Choose the ports of this run."""
        raise NotImplementedError

    async def _prepare(self) -> None:
        """Write settings and format storage."""

    def _command(self) -> list[str]:
        """Return the command of the service."""
        raise NotImplementedError

    def _environment(self) -> Mapping[str, str]:
        """Return the environment of its process."""
        return os.environ

    async def _answers(self) -> bool:
        """Return whether it answers requests."""
        raise NotImplementedError

    async def _launch(self) -> None:
        written = self.log_file.stat().st_size if self.log_file.exists() else 0
        self._child = Child(self._command(), log_file=self.log_file, env=self._environment(), cwd=self.folder)
        self._pid_file.write(self._child.pid)
        deadline = time.monotonic() + self.start_timeout_s
        while not await self._answers():
            code = self._child.exit_code
            if code is None and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)
                continue
            self._child.kill()
            what = f"did not answer within {self.start_timeout_s:g} s" if code is None else f"exited with {code}"
            with self.log_file.open("rb") as log:
                end = log.seek(0, os.SEEK_END)
                log.seek(max(written if written <= end else 0, end - _LOG_TAIL))  # less if it was rotated
                tail = log.read().decode(errors="replace")
            raise ServiceFailed(f"{self.name} {what}. {self.log_file} ends:\n{tail}")

    def _take_folder(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        # The kernel releases a flock with its owner, so a crash leaves no stale lock.
        lock = (self.folder / f"{self.name}.lock").open("a")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as taken:
            lock.close()
            raise FolderInUse(
                f"Another {self.name} runs in {self.folder}. Stop it, or choose another folder."
            ) from taken
        self._lock = lock


async def listens(host: str, port: int) -> bool:
    """Return whether a server accepts connections on a port."""
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError:
        return False
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return True
