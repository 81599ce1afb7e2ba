"""Exec another program that is killed with its parent: `python launch.py PARENT_PID PROGRAM ARGUMENT…`.

A separate program, since `preexec_fn` may deadlock in a process with threads. It runs by path and isolated
(`-I -S`), so it imports nothing of Darkroom.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def kill_with_parent() -> None:
    """Have the kernel kill this process when its parent thread ends, where it can: on Linux."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def become(parent: int, command: list[str]) -> None:
    """Replace this process by `command`, which is killed with its parent."""
    kill_with_parent()
    if os.getppid() != parent:  # the parent exited before prctl
        sys.exit(1)
    os.execvp(command[0], command)  # noqa: S606  no shell is meant


if __name__ == "__main__":
    become(int(sys.argv[1]), sys.argv[2:])
