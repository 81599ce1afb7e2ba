"""The child process of streams.sandbox.pool: confines itself, then runs one function on each task it receives.

Resources are limited before the function is imported; files, system calls and privileges after that, since imports
read files. Started as `python -m streams.sandbox.child module:function LIMITS`; the socket to the parent is its
standard input.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import resource
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from streams.sandbox import kernel
from streams.sandbox.containment import contain

if TYPE_CHECKING:  # pydantic would slow the start
    from pydantic import JsonValue

Function = Callable[[dict[str, "JsonValue"], bytes], "tuple[dict[str, JsonValue], list[bytes]]"]

_MESSAGE_LIMIT = 4000  # characters of a traceback's tail


def bound(limits: dict[str, int]) -> None:
    """Limit this process's resources, and its life to its parent's. Called before any untrusted byte is read."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    memory = limits["memory_mb"] << 20
    # RLIMIT_DATA counts private writable memory (Linux >= 4.7); RLIMIT_AS would also count every mapped library.
    resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limits["open_files"], limits["open_files"]))
    os.nice(limits["niceness"])


def frame_header(header: dict[str, JsonValue]) -> bytes:
    """Return the start of a frame: the JSON's length (4 bytes, big endian) and the JSON; the blobs follow."""
    body = json.dumps(header, separators=(",", ":")).encode()
    return len(body).to_bytes(4, "big") + body


def serve(link: socket.socket, function: Function, cpu_s: int) -> None:
    """Process tasks until the parent closes its socket. The first frame names missing parts of the confinement."""
    missing: list[JsonValue] = [*contain()]
    _send(link, {"status": "ready", "missing": missing})
    while (task := _receive(link)) is not None:
        used = time.process_time()
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(used) + cpu_s, hard))
        _send(link, *_answer(function, *task))
        del task  # an idle child keeps no image in memory


def _answer(function: Function, args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    try:
        result, blobs = function(args, data)
    except MemoryError:
        return {"status": "memory"}, []
    except Exception as error:
        code, message = getattr(error, "code", None), getattr(error, "message", None)
        if isinstance(code, str) and isinstance(message, str):
            return {"status": "refused", "code": str(code), "message": message[:_MESSAGE_LIMIT]}, []
        return {"status": "failed", "message": traceback.format_exc()[-_MESSAGE_LIMIT:]}, []
    return {"status": "ok", "result": result}, blobs


def _send(link: socket.socket, header: dict[str, JsonValue], blobs: list[bytes] | None = None) -> None:
    link.sendall(frame_header({**header, "blobs": [len(blob) for blob in blobs or ()]}))
    for blob in blobs or ():
        link.sendall(blob)


def _receive(link: socket.socket) -> tuple[dict[str, JsonValue], bytes] | None:
    size = _exactly(link, 4)
    if size is None:
        return None
    header = json.loads(_exactly(link, int.from_bytes(size, "big")) or b"{}")
    data = _exactly(link, header["blobs"][0])
    return None if data is None else (header["args"], data)


def _exactly(link: socket.socket, size: int) -> bytes | None:
    parts, missing = [], size
    while missing:
        part = link.recv(min(missing, 1 << 20))
        if not part:
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def main() -> None:
    """Limit this process, import the function, confine this process, serve."""
    name, limits = sys.argv[1], json.loads(sys.argv[2])
    link = socket.socket(fileno=os.dup(0))
    os.close(0)  # a decoder that reads standard input must not read from the socket
    os.open(os.devnull, os.O_RDONLY)
    for number in (signal.SIGINT, signal.SIGTERM):  # the parent stops the child, after its task
        signal.signal(number, signal.SIG_IGN)
    try:
        bound(limits)
        module, _, attribute = name.partition(":")
        function: Function = getattr(importlib.import_module(module), attribute)
    except Exception:
        _send(link, {"status": "failed", "message": traceback.format_exc()[-_MESSAGE_LIMIT:]})
        return
    serve(link, function, limits["cpu_s"])


if __name__ == "__main__":
    main()
