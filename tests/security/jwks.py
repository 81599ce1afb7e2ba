"""An HTTP server of published keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Jwks:
    """The JWK set of a server, and how often it was fetched."""

    keys: list[dict[str, Any]] = field(default_factory=list)
    raw: bytes | None = None
    status: int = 200
    fetches: int = 0
    url: str = ""

    def body(self) -> bytes:
        """Return the response body."""
        return json.dumps({"keys": self.keys}).encode() if self.raw is None else self.raw


@contextmanager
def serving_keys() -> Iterator[Jwks]:
    """Serve a JWK set on a free port."""
    known = Jwks()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            known.fetches += 1
            body = known.body()
            self.send_response(known.status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    known.url = f"http://127.0.0.1:{server.server_port}/keys"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield known
    server.shutdown()
    server.server_close()
    thread.join()
