"""A seccomp filter for a process that computes only: no sockets, programs, processes, foreign signals, shared memory.

A list of refusals rather than of permissions: decoders of eight formats on two architectures and several C libraries
need calls that no test run enumerates. What is newer than the list is refused as unknown to the kernel (ENOSYS), so
that libraries fall back. Refused calls return EPERM; the process goes on. Applies to all threads.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from typing import Final, NamedTuple

from streams.sandbox.kernel import address, syscall
from streams.sandbox.syscalls import CONDITIONAL, NEW, NEW_ALLOWED, REFUSED


class Architecture(NamedTuple):
    """How one architecture identifies itself and numbers its calls."""

    column: int  # of the tables in streams.sandbox.syscalls
    audit: int  # AUDIT_ARCH_* of linux/audit.h
    seccomp: int  # number of seccomp(2)


ARCHITECTURES: Final = {
    "x86_64": Architecture(0, 0xC000003E, 317),
    "aarch64": Architecture(1, 0xC00000B7, 277),
}


class _Condition(NamedTuple):
    """A call passes if `argument & mask` is one of `values`, or, with `refused`, if it is none of them."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFF_FFFF
    refused: bool = False


_CLONE_THREAD = 0x10000
_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_NOTIFY = 8, 10, 15, 1026  # signals to others by way of a file
_TCGETS, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX = 0x5401, 0x541B, 0x5421, 0x5450, 0x5451
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_MAP_SHARED, _MAP_GROWSDOWN = 0x001, 0x100  # RLIMIT_DATA counts neither
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | 0x400000  # the last is __O_TMPFILE


def _conditions() -> dict[str, _Condition]:
    """Return the conditions of this process's calls; arguments count from 0."""
    own = (os.getpid(),)
    return {
        "clone": _Condition(0, (_CLONE_THREAD,), mask=_CLONE_THREAD),
        "kill": _Condition(0, own),
        "tkill": _Condition(0, own),
        "tgkill": _Condition(0, own),
        "prlimit64": _Condition(0, (0, *own)),
        "prctl": _Condition(0, (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)),
        "fcntl": _Condition(1, (_F_SETOWN, _F_SETSIG, _F_SETOWN_EX, _F_NOTIFY), refused=True),
        "ioctl": _Condition(1, (_TCGETS, _FIONREAD, _FIONBIO, _FIONCLEX, _FIOCLEX)),
        "mmap": _Condition(3, (0,), mask=_MAP_SHARED | _MAP_GROWSDOWN),
        "open": _Condition(1, (0,), mask=_WRITING),
        "openat": _Condition(2, (0,), mask=_WRITING),
    }


# Classic BPF (linux/bpf_common.h) over struct seccomp_data (linux/seccomp.h): number, architecture, then arguments.
_LOAD, _AND, _IF_EQUAL, _IF_AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16
_ALLOW, _KILL = 0x7FFF_0000, 0x8000_0000
_REFUSE = 0x0005_0000  # plus the errno
_SET_MODE_FILTER, _ALL_THREADS = 1, 1


class Instruction(NamedTuple):
    """One instruction of classic BPF."""

    code: int
    k: int
    if_true: int = 0  # instructions to skip
    if_false: int = 0


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p))


def restrict() -> None:
    """Install the filter in all threads. Needs no_new_privs. Raises OSError, also on another architecture."""
    architecture = ARCHITECTURES.get(os.uname().machine)
    if architecture is None or sys.maxsize < 1 << 32:
        raise OSError(errno.ENOSYS, f"no system call table for {os.uname().machine}")
    code = b"".join(
        one.code.to_bytes(2, sys.byteorder) + bytes((one.if_true, one.if_false)) + one.k.to_bytes(4, sys.byteorder)
        for one in instructions(architecture)
    )
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _Program(len(code) // 8, ctypes.addressof(buffer))
    if thread := syscall(architecture.seccomp, _SET_MODE_FILTER, _ALL_THREADS, address(program)):
        raise OSError(errno.EBUSY, f"thread {thread} does not take the filter")


def instructions(architecture: Architecture) -> list[Instruction]:
    """Return the filter of this process on an architecture."""
    lines = [
        Instruction(_LOAD, _ARCHITECTURE),
        Instruction(_IF_EQUAL, architecture.audit, 1, 0),
        Instruction(_RETURN, _KILL),  # a call by another architecture's numbers
        Instruction(_LOAD, _NUMBER),
        *_block(_IF_AT_LEAST, NEW, [*_choose(tuple(NEW_ALLOWED.values()), _ALLOW, _REFUSE | errno.ENOSYS)]),
    ]
    for name, condition in _conditions().items():
        number = CONDITIONAL[name][architecture.column]
        if number is not None:
            lines += _block(_IF_EQUAL, number, _checked(condition))
    for numbers in REFUSED.values():
        number = numbers[architecture.column]
        if number is not None:
            lines += _block(_IF_EQUAL, number, [Instruction(_RETURN, _REFUSE | errno.EPERM)])
    return [*lines, Instruction(_RETURN, _ALLOW)]


def _checked(condition: _Condition) -> list[Instruction]:
    outcomes = (_ALLOW, _REFUSE | errno.EPERM)
    listed, other = reversed(outcomes) if condition.refused else outcomes
    return [
        Instruction(_LOAD, _ARGUMENTS + 8 * condition.argument),  # the lower half, in little-endian order
        Instruction(_AND, condition.mask),
        *_choose(condition.values, listed, other),
    ]


def _choose(values: tuple[int, ...], listed: int, other: int) -> list[Instruction]:
    """Return one of two results, by whether the loaded number is among the values."""
    count = len(values)
    tests = [Instruction(_IF_EQUAL, value, count - index, 0) for index, value in enumerate(values)]
    return [*tests, Instruction(_RETURN, other), Instruction(_RETURN, listed)]


def _block(test: int, number: int, lines: list[Instruction]) -> list[Instruction]:
    """Run `lines`, which end in a return, if the test of the call's number is true."""
    return [Instruction(test, number, 0, len(lines)), *lines]
