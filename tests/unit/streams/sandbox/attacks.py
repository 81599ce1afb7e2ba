"""What a decoder that runs an attacker's code may try: each attack returns what it gained, or raises OSError."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import importlib
import mmap
import os
import resource
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from agents.core.sanitize import sanitize_in_child
from streams.sandbox.syscalls import CONDITIONAL, REFUSED

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_COLUMN = {"x86_64": 0, "aarch64": 1}[os.uname().machine]
_PTRACE_ATTACH = 16
_SESSION_KEYRING, _KEYCTL_DESCRIBE = -3, 6
_CLONE_NEWUSER = 0x10000000
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4

PERMITTED = "nothing forbidden"  # in place of an attack


class Target(NamedTuple):
    """What the attacks aim at; all of it exists."""

    parent: int  # process id of the worker
    file: str  # a file of the worker's user, outside the project
    port: int  # listening, on 127.0.0.1
    unix: str  # listening
    abstract: str  # listening, in the abstract namespace


def attack(args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    """Run one attack, or sanitize the image, as the sanitizer does, if `args` names none."""
    if "attack" not in args:
        return sanitize_in_child(args, data)
    target = Target(
        int(str(args["parent"])), str(args["file"]), int(str(args["port"])), str(args["unix"]), str(args["abstract"])
    )
    try:
        gained = {**ATTACKS, PERMITTED: _permitted}[str(args["attack"])](target)
    except OSError as error:
        return {"refused": errno.errorcode.get(error.errno or 0, str(error))}, []
    return {"gained": repr(gained)[:500]}, []


def _call(name: str, *arguments: int | bytes) -> int:
    """Make a system call by its number, without the C library. Raises OSError."""
    number = {**REFUSED, **CONDITIONAL}[name][_COLUMN]
    if number is None:
        raise OSError(f"{name} does not exist on this architecture")
    passed = (ctypes.c_ulong(one) if isinstance(one, int) else ctypes.c_char_p(one) for one in arguments)
    return _number(_LIBC.syscall(ctypes.c_long(number), *passed))


def _number(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def _tcp(target: Target) -> object:
    with socket.socket() as client:
        client.connect(("127.0.0.1", target.port))
        return client.getpeername()


def _udp(target: Target) -> object:
    with socket.socket(type=socket.SOCK_DGRAM) as client:
        return client.sendto(b"x", ("127.0.0.1", target.port))


def _unix(target: Target) -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(target.unix)
        return client.getpeername()


def _abstract(target: Target) -> object:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(f"\0{target.abstract}")
        return client.getpeername()


def _link() -> int:
    """Return the descriptor of the socket to the parent."""
    for descriptor in range(3, 64):
        try:
            socket.socket(fileno=os.dup(descriptor)).close()
        except OSError:
            continue
        return descriptor
    raise AssertionError("no socket")


def _listen(_: Target) -> object:
    return socket.create_server(("127.0.0.1", 0)).getsockname()


def _fork(_: Target) -> object:
    if (child := os.fork()) == 0:
        os._exit(0)
    return child


def _fork_bomb(_: Target) -> object:
    """Try 50 times, so that a refusal of the first process only would show."""
    children, refusal = [], OSError()
    for _attempt in range(50):
        try:
            children.append(_fork(_))
        except OSError as error:
            refusal = error
    if not children:
        raise refusal
    return children


def _grandchild(target: Target) -> object:
    """Leave a process that outlives this one's parent, as a daemon does."""
    if os.fork() == 0:
        os.setsid()
        _fork(target)
        os._exit(0)
    return "a daemon"


def _shared_map(size: int, flags: int) -> object:
    with mmap.mmap(-1, size, flags=flags) as memory:
        memory[size - 1] = 1
        return len(memory)


def _memory_file(_: Target) -> object:
    descriptor = os.memfd_create("x")
    os.ftruncate(descriptor, 3 << 30)
    return descriptor


def _read_memory(target: Target) -> object:
    """Read the parent's memory at the address of a value of this process: the error shows whether it was tried."""
    buffer = ctypes.create_string_buffer(16)
    vector = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 16)
    _number(_LIBC.process_vm_readv(target.parent, vector, 1, vector, 1, 0))
    return buffer.raw


def _file_signal(target: Target) -> object:
    """Have the kernel signal the parent when the socket becomes readable."""
    return fcntl.fcntl(_link(), fcntl.F_SETOWN, target.parent)


def _write(target: Target) -> object:
    return os.open(target.file, os.O_WRONLY)


def _create(target: Target) -> object:
    return os.open(f"{target.file}.new", os.O_CREAT | os.O_WRONLY)


def _truncate_by_open(target: Target) -> object:
    return os.open(target.file, os.O_RDONLY | os.O_TRUNC)


def _limit_parent(target: Target) -> object:
    return resource.prlimit(target.parent, resource.RLIMIT_NOFILE, (3, 3))


def _outlive(_: Target) -> object:
    return _number(_LIBC.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0))


def _dumpable(_: Target) -> object:
    return _number(_LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0))


def _permitted(_: Target) -> object:
    """Do what decoders, Python and the C library need."""
    started = threading.Thread(target=os.urandom, args=(16,))
    started.start()
    started.join()
    bytearray(64 << 20)
    importlib.reload(importlib.import_module("wave"))  # from the standard library, not imported yet
    importlib.import_module("PIL.ImageFont")
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    for number in (0, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    signal.raise_signal(signal.SIGUSR1)
    return "everything"


ATTACKS: dict[str, Callable[[Target], object]] = {
    "read the parent's environment": lambda to: Path(f"/proc/{to.parent}/environ").read_bytes(),
    "read the parent's memory by /proc": lambda to: os.open(f"/proc/{to.parent}/mem", os.O_RDONLY),
    "read the parent's memory by a system call": _read_memory,
    "read the parent's command line": lambda to: Path(f"/proc/{to.parent}/cmdline").read_bytes(),
    "list processes": lambda _: os.listdir("/proc"),  # noqa: PTH208
    "attach to the parent": lambda to: _call("ptrace", _PTRACE_ATTACH, to.parent, 0, 0),
    "read a foreign file": lambda to: Path(to.file).read_bytes(),
    "list a foreign folder": lambda to: os.listdir(Path(to.file).parent),  # noqa: PTH208
    "read the system's users": lambda _: Path("/etc/passwd").read_bytes(),
    "list the project's root": lambda _: os.listdir(Path(__file__).parents[4]),  # noqa: PTH208
    "watch a foreign folder": lambda _: _call("inotify_init1", 0),
    "write a file": _write,
    "create a file": _create,
    "truncate a file": lambda to: os.truncate(to.file, 0),
    "truncate a file by opening it": _truncate_by_open,
    "remove a file": lambda to: Path(to.file).unlink(),
    "rename a file": lambda to: Path(to.file).rename(f"{to.file}.new"),
    "link a file": lambda to: Path(f"{to.file}.new").hardlink_to(to.file),
    "make a folder": lambda to: Path(f"{to.file}.new").mkdir(),
    "change a file's mode": lambda to: Path(to.file).chmod(0),
    "change a file's times": lambda to: os.utime(to.file, (0, 0)),
    "connect by TCP": _tcp,
    "send by UDP": _udp,
    "connect by a Unix socket": _unix,
    "connect by an abstract Unix socket": _abstract,
    "listen": _listen,
    "run a program": lambda _: os.execv("/bin/true", ["true"]),
    "start a program": lambda _: os.posix_spawn("/bin/true", ["true"], {}),
    "start a process": _fork,
    "start a process by clone": lambda _: _call("clone", signal.SIGCHLD, 0, 0, 0, 0),
    "start many processes": _fork_bomb,
    "leave a grandchild": _grandchild,
    "map 3 GB of shared memory": lambda _: _shared_map(3 << 30, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS),
    "map 3 GB of stack": lambda _: _shared_map(3 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x100),
    "map 3 GB of private memory": lambda _: _shared_map(3 << 30, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS),
    "make a file of 3 GB in memory": _memory_file,
    "make a shared memory segment": lambda _: _call("shmget", 0, 1 << 20, 0o1600),
    "signal the parent": lambda to: os.kill(to.parent, signal.SIGCONT),
    "signal a thread of the parent": lambda to: _call("tgkill", to.parent, to.parent, signal.SIGCONT),
    "signal every process": lambda _: os.kill(-1, signal.SIGCONT),
    "signal the parent by a descriptor": lambda to: os.pidfd_open(to.parent),
    "signal the parent by a socket": _file_signal,
    "limit the parent's files": _limit_parent,
    "slow the parent down": lambda to: os.setpriority(os.PRIO_PROCESS, to.parent, 19),
    "move the parent to one processor": lambda to: os.sched_setaffinity(to.parent, {0}),
    "read keyrings": lambda _: _call("keyctl", _KEYCTL_DESCRIBE, _SESSION_KEYRING % (1 << 32), 0, 0),
    "add a key": lambda _: _call("add_key", b"user", b"x", b"y", 1, _SESSION_KEYRING % (1 << 32)),
    "become root of a user namespace": lambda _: _call("unshare", _CLONE_NEWUSER),
    "mount a file system": lambda _: _call("mount", b"none", b"/mnt", b"tmpfs", 0, 0),
    "change the root folder": lambda _: os.chroot("/tmp"),
    "load a program into the kernel": lambda _: _call("bpf", 0, 0, 0),
    "handle page faults": lambda _: _call("userfaultfd", 0),
    "outlive the parent": _outlive,
    "become dumpable": _dumpable,
}
