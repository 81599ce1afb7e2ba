"""The container's health check: /health/ready of its process. In Python, since the slim image has no curl."""

from __future__ import annotations

import os
import sys
import urllib.request

_TIMEOUT_S = 2.5


def answers(ports: tuple[str, ...]) -> bool:
    """Return whether /health/ready answers 200 on the first port, of an agent or a gateway, that answers."""
    for port in ports:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health/ready", timeout=_TIMEOUT_S) as reply:
                return bool(reply.status == 200)
        except OSError:  # connection error, timeout or HTTP error: all OSErrors in urllib
            continue
    return False


if __name__ == "__main__":
    chosen = tuple(os.environ.get(name, "") for name in ("DARKROOM_WORKER__HTTP_PORT", "DARKROOM_GATEWAY__PORT"))
    sys.exit(0 if answers(tuple(port for port in chosen if port)) else 1)
