"""The seccomp filter on both architectures, run by an interpreter of the BPF instructions it consists of."""

from __future__ import annotations

import errno
import os
import resource
import signal

import pytest

from streams.sandbox.seccomp import ARCHITECTURES, Architecture, instructions
from streams.sandbox.syscalls import CONDITIONAL, NEW_ALLOWED, REFUSED

ALLOWED, KILLED = 0x7FFF_0000, 0x8000_0000
READ = {"x86_64": 0, "aarch64": 63}
X32 = 0x4000_0000


def _verdict(architecture: Architecture, number: int, *arguments: int, audit: int | None = None) -> int | str:
    """Return the errno's name with which the filter refuses a call, else the action."""
    words = [number, audit or architecture.audit, 0, 0]  # the third and fourth: the instruction pointer
    for argument in (*arguments, *[0] * (6 - len(arguments))):
        words += [argument & 0xFFFF_FFFF, argument >> 32]
    program, at, loaded = instructions(architecture), 0, 0
    while True:
        code, k, if_true, if_false = program[at]
        at += 1
        match code:
            case 0x20:  # load a word
                loaded = words[k // 4]
            case 0x54:  # and
                loaded &= k
            case 0x15:  # jump if equal
                at += if_true if loaded == k else if_false
            case 0x35:  # jump if at least
                at += if_true if loaded >= k else if_false
            case 0x06:  # return
                return errno.errorcode[k & 0xFFFF] if k >> 16 == 5 else k
            case _:
                raise AssertionError(f"unknown instruction {code:#x}")


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_each_listed_call_is_refused(machine: str) -> None:
    """Every number of the list is refused with EPERM, and no number is listed twice."""
    architecture = ARCHITECTURES[machine]
    listed = [numbers[architecture.column] for numbers in (*REFUSED.values(), *CONDITIONAL.values())]
    numbers = [number for number in listed if number is not None]
    assert len(set(numbers)) == len(numbers) > 100
    for name, pair in REFUSED.items():
        number = pair[architecture.column]
        assert number is None or _verdict(architecture, number) == "EPERM", name


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_new_calls_do_not_exist_and_other_architectures_end_the_process(machine: str) -> None:
    """Calls newer than the list look unknown to the kernel, so that the C library falls back."""
    architecture = ARCHITECTURES[machine]
    assert _verdict(architecture, READ[machine]) == ALLOWED
    for number in (424, 425, 434, 435, 437, 440, 450, 452, 600, X32, X32 + 59):
        assert _verdict(architecture, number) == "ENOSYS", number
    for name, number in NEW_ALLOWED.items():
        assert _verdict(architecture, number) == ALLOWED, name
    assert _verdict(architecture, READ[machine], audit=0x4000_0003) == KILLED  # 32-bit x86


@pytest.mark.parametrize("machine", ARCHITECTURES)
@pytest.mark.parametrize(
    ("name", "arguments", "allowed"),
    [
        ("clone", (0x3D0F00,), True),  # a thread of glibc
        ("clone", (signal.SIGCHLD,), False),
        ("kill", (os.getpid(), signal.SIGKILL), True),
        ("kill", (0, signal.SIGKILL), False),
        ("kill", (2**64 - 1, signal.SIGKILL), False),
        ("tgkill", (os.getpid(), 7, signal.SIGABRT), True),
        ("tgkill", (os.getppid(), 7, signal.SIGABRT), False),
        ("prlimit64", (0, resource.RLIMIT_CPU), True),
        ("prlimit64", (os.getppid(), resource.RLIMIT_CPU), False),
        ("prctl", (15,), True),  # a thread's name
        ("prctl", (1, 0), False),  # the signal at the parent's death
        ("fcntl", (3, 1), True),  # F_GETFD
        ("fcntl", (3, 8, os.getppid()), False),  # F_SETOWN
        ("ioctl", (3, 0x5401), True),  # isatty
        ("ioctl", (3, 0x5412), False),  # TIOCSTI
        ("mmap", (0, 1, 3, 0x22), True),  # private, anonymous
        ("mmap", (0, 1, 3, 0x21), False),  # shared
        ("mmap", (0, 1, 3, 0x03), False),  # shared, validated
        ("mmap", (0, 1, 3, 0x122), False),  # grows down
        ("openat", (0, 0, os.O_RDONLY | os.O_CLOEXEC), True),
        ("openat", (0, 0, os.O_WRONLY), False),
        ("openat", (0, 0, os.O_RDONLY | os.O_TRUNC), False),
        ("open", (0, os.O_CREAT), False),
    ],
)
def test_a_call_is_allowed_by_its_arguments(machine: str, name: str, arguments: tuple[int, ...], allowed: bool) -> None:
    """Only calls that stay within the process, and private mappings, are allowed."""
    architecture = ARCHITECTURES[machine]
    number = CONDITIONAL[name][architecture.column]
    assert number is None or _verdict(architecture, number, *arguments) == (ALLOWED if allowed else "EPERM")
