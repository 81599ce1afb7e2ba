"""Servers with the addresses of a Qdrant server's REST and gRPC, which record the calls and give fixed answers."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import grpc
import trustme
from qdrant_client import grpc as messages

VERSION = "1.18.0"


@dataclass(frozen=True, slots=True)
class Call:
    """One call that a server received."""

    name: str  # "PUT /collections/images", or the method's name
    headers: Mapping[str, str]
    body: Any  # parsed JSON, or the message
    client: str  # common name of the client's certificate


@dataclass(frozen=True, slots=True)
class Authority:
    """A private CA in a folder, with the files of a server at 127.0.0.1 and of a client named `darkroom`."""

    folder: Path
    ca: trustme.CA = field(default_factory=trustme.CA)

    def client_files(self) -> dict[str, Path]:
        """Write the CA and the client's certificate and key; return the files by the names of the settings."""
        self.folder.mkdir(exist_ok=True)
        files = {name: self.folder / f"{name}.pem" for name in ("ca_file", "client_cert_file", "client_key_file")}
        client = self.ca.issue_cert("darkroom.example", common_name="darkroom")
        files["ca_file"].write_bytes(self.ca.cert_pem.bytes())
        files["client_cert_file"].write_bytes(b"".join(blob.bytes() for blob in client.cert_chain_pems))
        files["client_key_file"].write_bytes(client.private_key_pem.bytes())
        return files

    def rest_context(self) -> ssl.SSLContext:
        """Return the context of a server that requires a certificate of this CA."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.ca.issue_cert("127.0.0.1").configure_cert(context)
        self.ca.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
        return context

    def grpc_credentials(self) -> Any:
        """Return the credentials of a gRPC server that requires a certificate of this CA."""
        server = self.ca.issue_cert("127.0.0.1")
        chain = b"".join(blob.bytes() for blob in server.cert_chain_pems)
        return grpc.ssl_server_credentials(
            [(server.private_key_pem.bytes(), chain)], self.ca.cert_pem.bytes(), require_client_auth=True
        )


def version_body(version: str = VERSION) -> dict[str, Any]:
    """Return what a server answers at its root."""
    return {"title": "qdrant - vector search engine", "version": version, "commit": None}


@contextmanager
def rest_server(
    answer: Callable[[Call], tuple[int, Any]], tls: ssl.SSLContext | None = None
) -> Iterator[tuple[str, list[Call]]]:
    """Run a REST server whose answers, status and JSON, `answer` makes; yield its URL and the calls."""
    calls: list[Call] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"] or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            call = Call(
                f"{self.command} {self.path}", headers, json.loads(body) if body else None, _client(self.connection)
            )
            calls.append(call)
            status, content = answer(call)
            encoded = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(encoded)))
            self.end_headers()
            self.wfile.write(encoded)

        do_PUT = do_PATCH = do_GET  # noqa: N815 - names of the standard library

        def log_message(self, *_arguments: Any) -> None:
            """Print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"{'http' if tls is None else 'https'}://127.0.0.1:{server.server_port}", calls
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def grpc_server(
    answers: Mapping[str, Callable[[Any, Any], Any]], credentials: Any = None
) -> Iterator[tuple[int, list[Call]]]:
    """Run a gRPC server; yield its port and the calls. `answers`: by method, made of the request and the context."""
    calls: list[Call] = []

    def method(name: str) -> Callable[[Any, Any], Any]:
        def call(request: Any, context: Any) -> Any:
            names = context.auth_context().get("x509_common_name", [b""])
            calls.append(Call(name, dict(context.invocation_metadata()), request, names[0].decode()))
            return answers[name](request, context)

        return call

    servicer = cast("Any", type("Servicer", (), {}))()
    for name in ("HealthCheck", *_COLLECTIONS):
        setattr(servicer, name, method(name))
    with ThreadPoolExecutor(2) as threads:
        server = grpc.server(threads)
        messages.add_QdrantServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        messages.add_CollectionsServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
        port = (
            server.add_insecure_port("127.0.0.1:0")
            if credentials is None
            else server.add_secure_port("127.0.0.1:0", credentials)
        )
        server.start()
        try:
            yield port, calls
        finally:
            server.stop(None).wait()


_COLLECTIONS = [name for name in vars(messages.CollectionsServicer) if not name.startswith("_")]


def healthy(version: str = VERSION) -> Callable[[Any, Any], Any]:
    """Return the answer of HealthCheck."""
    return lambda _request, _context: messages.HealthCheckReply(title="qdrant", version=version)


def _client(connection: Any) -> str:
    """Return the common name of a TLS client's certificate."""
    certificate: Any = connection.getpeercert() if isinstance(connection, ssl.SSLSocket) else None
    subject = certificate["subject"] if certificate else ()
    return next((value for parts in subject for key, value in parts if key == "commonName"), "")
