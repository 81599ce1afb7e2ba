"""Ports: the usual one when it is free, else any other."""

from __future__ import annotations

import socket

HOST = "127.0.0.1"


def is_free(port: int, host: str = HOST) -> bool:
    """Return whether a server could listen there now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Servers set it too; without it a port would look taken for a minute after its server ended (TIME_WAIT).
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
        return True


def choose(usual: int, host: str = HOST, *, taken: set[int] | None = None) -> int:
    """Return `usual` if it is free and not in `taken`, else a free port of the system's choice."""
    refused = taken or set()
    if usual and usual not in refused and is_free(usual, host):
        return usual
    while True:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.bind((host, 0))
            port = int(probe.getsockname()[1])
        if port not in refused:
            return port
