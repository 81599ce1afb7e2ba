"""A token endpoint of OAuth 2.0."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs

Received = tuple[str, dict[str, list[str]]]  # the header Authorization, and the form


@contextmanager
def token_endpoint(status: int, body: Callable[[int], dict[str, Any]]) -> Iterator[tuple[str, list[Received]]]:
    """Run a token endpoint; yield its URL and the requests. `body` makes a response from the number of requests."""
    received: list[Received] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            received.append((self.headers["Authorization"], form))
            answer = json.dumps(body(len(received))).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/token", received
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
