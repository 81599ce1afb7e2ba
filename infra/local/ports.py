"""Port selection: the preferred port if it is free, else any free port."""

from __future__ import annotations

import socket

HOST = "127.0.0.1"


def is_free(port: int, host: str = HOST) -> bool:
    """Return whether a server can listen on a port."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # As servers do: otherwise a port seems in use for a minute after its server exited (TIME_WAIT).
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def choose(preferred: int, host: str = HOST, *, taken: set[int] | None = None) -> int:
    """Return `preferred` if it is free and not in `taken`, else a free port chosen by the kernel."""
    excluded = taken or set()
    if preferred and preferred not in excluded and is_free(preferred, host):
        return preferred
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in excluded:
            return port
