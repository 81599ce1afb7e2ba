"""Confines the process of an untrusted function for the rest of its life, after its imports and before its first task.

What each part holds, and what none does: docs/decisions/0005-untrusted-decoding.md.
"""

from __future__ import annotations

import _thread
import os
import resource
import sys
from collections.abc import Callable, Iterator
from typing import Final

from streams.sandbox import kernel, landlock, seccomp

# RLIMIT_NPROC: threads of the user on this host, in all containers, so it is far above what they need together.
TASKS: Final = 16_384
# Shared libraries, and the number of processors, from which codecs derive their threads.
_SYSTEM: Final = (
    *("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache"),
    "/sys/devices/system/cpu",
)
_THREAD_S: Final = 10.0  # seconds a thread may take to start


class NotContained(Exception):
    """One part cannot be applied; the message says why."""


def contain() -> list[str]:
    """Apply every part to this process. Return the parts that this system lacks, each with the reason."""
    missing = []
    for part, apply in PARTS.items():
        try:
            apply()
        except (OSError, ValueError, NotContained) as error:
            missing.append(f"{part} ({getattr(error, 'strerror', None) or error})")
    return missing


def readable() -> list[str]:
    """Return what the function may still read: Python, system libraries and the imported packages, never a data folder.

    The project's own root is not among them, since it may hold a .env file and the embedded object store.
    """
    prefixes = tuple({f"{prefix}{os.sep}" for prefix in (sys.prefix, sys.base_prefix, sys.exec_prefix)})
    libraries = [f"{prefix}lib" for prefix in prefixes]
    python = [entry for entry in sys.path if entry.startswith(prefixes)]  # lib64, or a distribution's own folders
    return [
        *_SYSTEM,
        *libraries,
        *python,
        *(path for path in _imported() if not path.startswith((*libraries, *python))),
    ]


def _imported() -> Iterator[str]:
    """Yield the folders of the imported packages and the files of the other imported modules."""
    for name, module in list(sys.modules.items()):
        if "." in name or name == "__main__":
            continue
        paths = getattr(module, "__path__", None)
        file = getattr(module, "__file__", None)
        yield from [str(path) for path in paths] if paths is not None else [file] if isinstance(file, str) else []


def _no_new_privileges() -> None:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)


def _not_dumpable() -> None:
    """No process of the same user attaches to this one or reads its memory."""
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)


def _one_thread() -> None:
    """Landlock and capabilities apply to the calling thread and those it starts later."""
    if (count := len(os.listdir("/proc/self/task"))) != 1:  # noqa: PTH208 - pathlib would cost the start
        raise NotContained(f"the imports started {count - 1} threads")


def _files() -> None:
    landlock.restrict(readable())


def _limited_tasks() -> None:
    """Bound processes and threads, if the user has fewer: a decoder needs threads."""
    _, hard = resource.getrlimit(resource.RLIMIT_NPROC)
    limit = TASKS if hard == resource.RLIM_INFINITY else min(TASKS, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, hard))
    started = _thread.allocate_lock()
    started.acquire()
    try:
        _thread.start_new_thread(started.release, ())
    except RuntimeError as error:
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
        raise NotContained(f"the user already runs {limit} threads") from error
    started.acquire(timeout=_THREAD_S)
    resource.setrlimit(resource.RLIMIT_NPROC, (limit, limit))


PARTS: Final[dict[str, Callable[[], None]]] = {
    "no_new_privs": _no_new_privileges,
    "PR_SET_DUMPABLE": _not_dumpable,
    "single thread": _one_thread,
    "capabilities": kernel.drop_capabilities,
    "Landlock": _files,
    "seccomp": seccomp.restrict,
    "RLIMIT_NPROC": _limited_tasks,
}
