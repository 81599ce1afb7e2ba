"""Landlock (Linux 5.13): denies a thread and its descendants the file system, TCP, and signals to other processes.

Not covered by Landlock: stat(2), chmod(2), chown(2), utime(2), extended attributes and inotify(7). All but stat are
refused by `streams.sandbox.seccomp`. Constants: include/uapi/linux/landlock.h.
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable

from streams.sandbox.kernel import address, syscall

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # system calls, on every architecture
_VERSION = 1  # flag: return the ABI
_PATH_BENEATH = 1
_READ_FILE, _READ_DIR = 1 << 2, 1 << 3
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 5: 16}  # ABI -> number of access rights of files: refer, truncate, device ioctl
_TCP_ABI, _TCP_RIGHTS = 4, 0b11  # bind, connect
_SCOPE_ABI, _SCOPES = 6, 0b11  # abstract Unix sockets, signals


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64), ("net", ctypes.c_uint64), ("scoped", ctypes.c_uint64))


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def abi() -> int:
    """Return the kernel's Landlock ABI. Raises OSError if it is absent, disabled or not permitted."""
    return syscall(_CREATE_RULESET, 0, 0, _VERSION)


def restrict(readable: Iterable[str]) -> None:
    """Deny the calling thread all that this kernel's Landlock can deny, but reading beneath `readable`.

    Paths that do not exist are skipped. Needs no_new_privs. Raises OSError; then nothing is denied.
    """
    version = abi()
    rights = max(count for since, count in _FILE_RIGHTS.items() if since <= version)
    ruleset = _Ruleset(
        (1 << rights) - 1,
        _TCP_RIGHTS if version >= _TCP_ABI else 0,
        _SCOPES if version >= _SCOPE_ABI else 0,
    )
    # An older kernel accepts the longer structure as long as what it does not know is zero.
    descriptor = syscall(_CREATE_RULESET, address(ruleset), ctypes.sizeof(ruleset), 0)
    try:
        for path in readable:
            _allow_reading(descriptor, path)
        syscall(_RESTRICT_SELF, descriptor, 0)
    finally:
        os.close(descriptor)


def _allow_reading(ruleset: int, path: str) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = _PathBeneath(_READ_FILE | _READ_DIR if is_folder else _READ_FILE, descriptor)
        syscall(_ADD_RULE, ruleset, _PATH_BENEATH, address(rule), 0)
    finally:
        os.close(descriptor)
