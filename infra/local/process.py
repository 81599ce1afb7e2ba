"""A child process in its own session, with a log file, killed when its parent exits."""

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
    """A running program and its process group.

    Start it from a long-lived thread (the main one): the kernel's parent-death signal is bound to the thread, not the
    process.
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
        """None while running; negative: the signal that ended it."""
        return self._process.poll()

    async def wait(self) -> int:
        """Wait for the exit; return the exit code."""
        while (code := self.exit_code) is None:  # noqa: ASYNC110  the kernel sets no asyncio.Event
            await asyncio.sleep(_POLL_S)
        return code

    def wait_blocking(self, timeout_s: float) -> int:
        """Wait for the exit and return the exit code. Raises TimeoutError after `timeout_s` seconds."""
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired as late:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_s} s") from late

    async def stop(self, grace_s: float) -> int:
        """Send SIGTERM, and SIGKILL to the process group after `grace_s` seconds; return the exit code."""
        self.signal(signal.SIGTERM)
        deadline = time.monotonic() + grace_s
        while self.exit_code is None and time.monotonic() < deadline:  # noqa: ASYNC110  as in wait
            await asyncio.sleep(_POLL_S)
        return self.kill()

    def kill(self) -> int:
        """Send SIGKILL to the process group; return the exit code."""
        signal_group(self.pid, signal.SIGKILL)
        return self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, unless the process has exited."""
        if self.exit_code is None:
            signal_group(self.pid, number)


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group that may no longer exist."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # PermissionError: macOS, for a group of zombies
        return


def started_at(pid: int) -> str | None:
    """Return the start time of a process, which tells it from a later one of the same id; None if not running."""
    try:
        # The name, in parentheses, may contain spaces: count from its end. Field 3 is the state, 22 the start time.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" else fields[19]


class PidFile:
    """A pid file with the start time, by which a later start finds and kills a process left by a crash."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def write(self, pid: int) -> None:
        """Record a process."""
        self._path.write_text(f"{pid} {started_at(pid) or ''}\n")

    def read(self) -> int | None:
        """Return the recorded process id if that process still runs."""
        try:
            pid, _, started = self._path.read_text().strip().partition(" ")
        except FileNotFoundError:
            return None
        return int(pid) if pid.isdigit() and started and started_at(int(pid)) == started else None

    def clear(self) -> None:
        """Remove the file."""
        self._path.unlink(missing_ok=True)

    async def end_leftover(self) -> bool:
        """Kill the recorded process; return whether it was running."""
        pid = self.read()
        if pid is not None:
            signal_group(pid, signal.SIGKILL)
            while self.read() is not None:  # noqa: ASYNC110  not a child of this process: no wait()
                await asyncio.sleep(_POLL_S)
        self.clear()
        return pid is not None
