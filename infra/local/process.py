"""One child process: in its own session, logging to a file, never outliving the process that started it."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LAUNCHER = str(Path(__file__).with_name("launch.py"))
_POLL_S = 0.05


class Child:
    """A running program and everything it starts.

    Start it from a thread that lives as long as the child should (the main one): the kernel's parent-death signal
    watches the thread, not the process.
    """

    def __init__(
        self, command: Sequence[str], *, log_file: Path, env: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", _LAUNCHER, str(os.getpid()), *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else dict(env),
                cwd=cwd,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id; also the id of its process group."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative is the signal that ended it."""
        return self._process.poll()

    async def wait(self) -> int:
        """Return the exit code once it ended."""
        while (code := self.exit_code) is None:  # noqa: ASYNC110  the kernel sets no asyncio.Event
            await asyncio.sleep(_POLL_S)
        return code

    def wait_blocking(self, timeout_s: float) -> int:
        """Return the exit code once it ended; raise TimeoutError after `timeout_s` seconds."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_s} s") from late

    async def stop(self, grace_s: float) -> int:
        """Ask it to end (SIGTERM), kill it after `grace_s` seconds; nothing of its process group is left after."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while self.exit_code is None and time.monotonic() < deadline:  # noqa: ASYNC110  as in wait
            await asyncio.sleep(_POLL_S)
        return self.kill()

    def kill(self) -> int:
        """End it and its process group at once (SIGKILL); return the exit code."""
        signal_group(self.pid, signal.SIGKILL)
        return self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to it and whatever it started; nothing happens if it has ended."""
        if self.exit_code is None:
            signal_group(self.pid, number)


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group that may be gone."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS says this of a group of zombies
        return


def started_at(pid: int) -> str | None:
    """Return what tells this process from a later one of the same id; None if there is no such running process."""
    try:
        # The name, in parentheses, may hold anything: count the fields after it. Field 3 is the state, 22 the start.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


class PidFile:
    """Remembers a child on disk, so that a later start finds and ends one that a crash left behind."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, pid: int) -> None:
        """Remember this process."""
        self._path.write_text(f"{pid} {started_at(pid) or ''}\n")

    def read(self) -> int | None:
        """Return the id of the remembered process if that very process still runs."""
        try:
            pid, _, started = self._path.read_text().strip().partition(" ")
        except FileNotFoundError:
            return None
        return int(pid) if pid.isdigit() and started and started_at(int(pid)) == started else None

    def clear(self) -> None:
        """Forget it."""
        self._path.unlink(missing_ok=True)

    async def end_leftover(self) -> bool:
        """Kill the remembered process, if it still runs; True if there was one."""
        pid = self.read()
        if pid is not None:
            signal_group(pid, signal.SIGKILL)
            while self.read() is not None:  # noqa: ASYNC110  not our child: nothing tells of its end
                await asyncio.sleep(_POLL_S)
        self.clear()
        return pid is not None
