"""Processes of Darkroom forked from a server that has imported it already: an import costs two CPU seconds.

The server is `multiprocessing`'s: it starts with the first process, and ends with the test run. A forked process runs
`python -m MODULE` in all else: own session, environment, log file and exit code; a signal ends it, and so does the end
of the server. `/proc/PID/cmdline` and `environ` are the server's. The end-to-end tests start their processes as
operators do.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import runpy
import signal
import sys
from collections.abc import Mapping, Sequence
from multiprocessing.context import ForkServerContext
from pathlib import Path

from infra.local.launch import kill_with_parent
from infra.local.process import Child, signal_group


class ForkedChild(Child):
    """A `Child` that runs `python -m` of `command`: a module and its arguments."""

    def __init__(self, command: Sequence[str], *, log_file: Path, env: Mapping[str, str]) -> None:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        self._forked = _server().Process(target=_run, args=(list(command), str(log_file), dict(env)), daemon=True)
        self._forked.start()

    @property
    def pid(self) -> int:
        """The process id; also the id of its process group."""
        assert self._forked.pid is not None
        return self._forked.pid

    @property
    def exit_code(self) -> int | None:
        """None while running; negative: the signal that ended it."""
        return self._forked.exitcode

    def wait_blocking(self, timeout_s: float) -> int:
        """Wait for the exit and return the exit code. Raises TimeoutError after `timeout_s` seconds."""
        self._forked.join(timeout_s)
        if (code := self._forked.exitcode) is None:
            raise TimeoutError(f"process {self.pid} still runs after {timeout_s} s")
        return code

    def kill(self) -> int:
        """Send SIGKILL to the process group; return the exit code."""
        if self._forked.exitcode is None:  # before `setsid` it has no group of its own
            self._forked.kill()
        signal_group(self.pid, signal.SIGKILL)
        self._forked.join()
        assert self._forked.exitcode is not None
        return self._forked.exitcode


def _server() -> ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([f"{__package__}.preloaded"])
    return context


def _run(command: list[str], log_file: str, env: dict[str, str]) -> None:
    """Become `python -m COMMAND` in the forked process."""
    os.setsid()
    kill_with_parent()
    log = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.close(log)
    os.environ.clear()
    os.environ.update(env)
    module, *arguments = command
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # multiprocessing leaves by os._exit
