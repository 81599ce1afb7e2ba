"""Linux system calls that Python's library lacks, by ctypes. Every failure raises OSError with the kernel's errno."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4  # prctl(2)
PR_CAPBSET_READ, PR_CAPBSET_DROP = 23, 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL = 47, 4

_CAPABILITY_VERSION_3 = 0x20080522  # capset(2)
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long


def prctl(option: int, *arguments: int) -> int:
    """Return prctl(2)'s result."""
    padded = [*arguments, 0, 0, 0, 0][:4]
    return _checked(_LIBC.prctl(ctypes.c_int(option), *(ctypes.c_ulong(argument) for argument in padded)), "prctl")


def syscall(number: int, *arguments: int | ctypes.c_void_p) -> int:
    """Return the result of a system call; integers are passed as unsigned long."""
    passed = (ctypes.c_ulong(argument) if isinstance(argument, int) else argument for argument in arguments)
    return _checked(_LIBC.syscall(ctypes.c_long(number), *passed), f"system call {number}")


def address(value: ctypes.Structure | ctypes.Array[ctypes.c_uint32]) -> ctypes.c_void_p:
    """Return the address of a value that stays referenced during the call."""
    return ctypes.c_void_p(ctypes.addressof(value))


def drop_capabilities() -> None:
    """Remove every capability of the calling thread, and those it could regain, as far as it may remove these."""
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    for capability in range(64):
        try:
            if prctl(PR_CAPBSET_READ, capability):
                prctl(PR_CAPBSET_DROP, capability)
        except OSError:  # beyond the last one; or not permitted, and then no_new_privs forbids regaining it
            break
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    none = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: two words each
    _checked(_LIBC.capset(address(header), address(none)), "capset")


def _checked(result: int, call: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{call}: {os.strerror(number)}")
    return result
