"""A fault-injecting HTTP/1.1 proxy for MinIO: latency, low bandwidth, resets, errors, refused connections, full disk.

It parses only the head and the Content-Length of a request, which is enough to answer one itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count

_HEAD_LIMIT = 64 * 1024
_CHUNK = 16 * 1024
_WRITES = (b"PUT", b"POST")


@dataclass(frozen=True, slots=True)
class Toxin:
    """The faults to inject; none by default."""

    latency_s: float = 0.0  # before each request is forwarded
    bytes_per_s: float = 0.0  # of responses; 0: unlimited
    unavailable: bool = False  # connections are reset at once
    reset_every: int = 0  # every n-th request: the connection is reset during the response
    error_every: int = 0  # every n-th request is answered 503 SlowDown
    full: bool = False  # writes are answered 507 XMinioStorageFull


CALM = Toxin()


class Proxy:
    """Forwards connections to `host:port`; `toxin` may be changed at any time."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._open: set[asyncio.StreamWriter] = set()
        self._numbers = count(1)
        self._toxin = CALM
        self.port = 0

    @property
    def endpoint(self) -> str:
        """The `host:port` of the listener."""
        return f"127.0.0.1:{self.port}"

    @property
    def toxin(self) -> Toxin:
        """The faults injected now."""
        return self._toxin

    @toxin.setter
    def toxin(self, toxin: Toxin) -> None:
        self._toxin = toxin
        if toxin.unavailable:
            for writer in list(self._open):
                _reset(writer)

    async def serve(self, client: asyncio.StreamReader, answer: asyncio.StreamWriter) -> None:
        """Forward one connection until either side closes it."""
        self._open.add(answer)
        upstream: asyncio.StreamWriter | None = None
        try:
            if self._toxin.unavailable:
                _reset(answer)
                return
            server = None
            while head := await _head(client):
                if server is None or upstream is None or server.at_eof():  # MinIO closes idle connections
                    server, upstream = await asyncio.open_connection(*self._target)
                await self._forward(head, client, server, answer, upstream)
        except (OSError, EOFError, ValueError, asyncio.IncompleteReadError):
            _reset(answer)
        finally:
            self._open.discard(answer)
            for writer in (answer, upstream):
                if writer is not None:
                    writer.close()

    async def _forward(
        self,
        head: bytes,
        client: asyncio.StreamReader,
        server: asyncio.StreamReader,
        answer: asyncio.StreamWriter,
        upstream: asyncio.StreamWriter,
    ) -> None:
        toxin, number = self._toxin, next(self._numbers)
        method, length = head.split(b" ", 1)[0], _length(head)
        if toxin.unavailable:
            raise ConnectionResetError
        if toxin.latency_s:
            await asyncio.sleep(toxin.latency_s)
        rejection = _rejection(toxin, number, method)
        if rejection is not None:
            await _discard(client, length)
            answer.write(rejection)
            await answer.drain()
            return
        upstream.write(head)
        await _pass(client, upstream, length)
        response = await _head(server)
        if not response:
            raise EOFError
        status = int(response.split(b" ", 2)[1])
        answer.write(response)
        if method == b"HEAD" or status in {204, 304}:
            await answer.drain()
            return
        if toxin.reset_every and number % toxin.reset_every == 0:
            raise ConnectionResetError
        if b"transfer-encoding: chunked" in response.lower():
            await _pass_chunked(server, answer)
        else:
            await _pass(server, answer, _length(response), toxin.bytes_per_s)


@asynccontextmanager
async def running_proxy(target: str) -> AsyncIterator[Proxy]:
    """Run a proxy on a free port."""
    proxy = Proxy(target)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, limit=_HEAD_LIMIT)
    proxy.port = server.sockets[0].getsockname()[1]
    try:
        yield proxy
    finally:
        server.close()
        proxy.toxin = Toxin(unavailable=True)


async def _head(reader: asyncio.StreamReader) -> bytes:
    """Return the head of a message; b"" at the end of the connection."""
    try:
        return await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as end:
        if end.partial:
            raise
        return b""


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            return int(value)
    return 0


def _rejection(toxin: Toxin, number: int, method: bytes) -> bytes | None:
    if toxin.full and method in _WRITES:
        return _error(507, "XMinioStorageFull", "Storage backend has reached its minimum free drive threshold.")
    if toxin.error_every and number % toxin.error_every == 0:
        return _error(503, "SlowDown", "Please reduce your request rate.")
    return None


def _error(status: int, code: str, message: str) -> bytes:
    body = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message></Error>".encode()
    head = f"HTTP/1.1 {status} Toxic\r\nContent-Type: application/xml\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def _discard(reader: asyncio.StreamReader, length: int) -> None:
    while length > 0:
        length -= len(await _some(reader, length))


async def _pass(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, length: int, bytes_per_s: float = 0.0
) -> None:
    while length > 0:
        chunk = await _some(reader, length)
        writer.write(chunk)
        await writer.drain()
        length -= len(chunk)
        if bytes_per_s:
            await asyncio.sleep(len(chunk) / bytes_per_s)
    await writer.drain()


async def _pass_chunked(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        line = await reader.readline()
        writer.write(line)
        size = int(line.split(b";")[0], 16)
        await _pass(reader, writer, size + 2)
        if size == 0:
            return


async def _some(reader: asyncio.StreamReader, most: int) -> bytes:
    chunk = await reader.read(min(most, _CHUNK))
    if not chunk:
        raise EOFError
    return chunk


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST instead of FIN."""
    with contextlib.suppress(OSError):
        raw = writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
