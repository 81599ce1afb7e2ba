"""Clients that send too slowly, too much, or invalid HTTP are cut off or refused, while others are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from starlette.types import Receive, Scope, Send

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from streams.object_store.factory import open_files
from streams.process.bounded_http import ServerSettings
from streams.process.http_server import serving
from streams.settings import FilesSettings
from tests.security.lines import PATIENCE_S, PAUSE_S, Line, connected
from tests.support.gateway_components import JPEG, UPLOAD, FaultyFiles, Sink, StubReadiness, settings

MAX_UPLOAD = 200_000
MEBIBYTE = 1 << 20
FORM = b"multipart/form-data; boundary=x"
OPENING = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n\r\n'
CLOSING = b"\r\n--x--\r\n"


@dataclass
class SocketGateway:
    """A gateway on a socket, and what it accepted."""

    port: int
    files: FaultyFiles
    sink: Sink
    lines: list[Line] = field(default_factory=list)

    async def connect(self) -> Line:
        """Return a new connection, closed with the gateway."""
        self.lines.append(await connected(self.port))
        return self.lines[-1]

    async def check_unaffected(self) -> None:
        """Check that others are served, and that nothing but their image was accepted."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S) as client:
            answer = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)})
        assert answer.status_code == 202, answer.text
        assert len(self.sink.sent) == 1
        assert len(await self.files.receipts()) == 1
        assert len([key for key in await self.files.objects() if key.startswith("originals/")]) == 1


@asynccontextmanager
async def opened(folder: Path, server: ServerSettings | None = None, **changes: object) -> AsyncIterator[SocketGateway]:
    """Open a gateway on a socket."""
    sink = Sink()
    async with open_files(FilesSettings(directory=folder / "objects")) as files:
        frail = FaultyFiles(files)
        own = settings(max_upload_bytes=MAX_UPLOAD, spool_dir=folder, **changes)
        app = ingest_app(own, IngestComponents(files=frail, events=sink, readiness=StubReadiness()))
        async with serving(app, "127.0.0.1", 0, server or ServerSettings()) as port:
            gateway = SocketGateway(port, frail, sink)
            try:
                yield gateway
            finally:
                for line in gateway.lines:
                    await line.close()
    assert not list(folder.glob("darkroom-upload-*")), "something is left on disk"


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[SocketGateway]:
    async with opened(tmp_path) as found:
        yield found


def head(*lines: bytes, path: str = UPLOAD, kind: bytes = FORM) -> bytes:
    """Return the head of a POST."""
    return b"\r\n".join([f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Content-Type: " + kind, *lines, b"", b""])


def chunk(data: bytes) -> bytes:
    """Return a chunk of a chunked body."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def bytewise(data: bytes) -> Iterator[bytes]:
    return (data[at : at + 1] for at in range(len(data)))


def forever(some: bytes) -> Iterator[bytes]:
    while True:
        yield some


def code_of(body: bytes) -> str:
    return str(json.loads(body)["code"])


# Slow


@pytest.mark.parametrize("first", [b"", b"POST " + UPLOAD.encode() + b" HTTP/1.1\r\nHost: x\r\n"])
async def test_a_slow_head_is_cut_off(first: bytes, tmp_path: Path) -> None:
    """Slow-loris: a connection without a complete head in time is closed, however steadily its headers arrive."""
    async with opened(tmp_path, ServerSettings(head_s=0.5)) as gateway:
        line = await gateway.connect()
        await line.send(first)
        await line.drip(forever(b"X: y\r\n") if first else iter(()))
        assert await line.rest() == b""
        await gateway.check_unaffected()


async def test_a_slow_second_head_is_cut_off(tmp_path: Path) -> None:
    """A kept-alive connection has as much time for its next head as a new one."""
    async with opened(tmp_path, ServerSettings(head_s=0.5, keep_alive_s=600)) as gateway:
        line = await gateway.connect()
        await line.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer())[0] == 200
        await line.drip(forever(b"G"))
        assert await line.rest() == b""
        await gateway.check_unaffected()


async def test_an_idle_connection_is_closed(tmp_path: Path) -> None:
    """An idle kept-alive connection is closed after a time."""
    async with opened(tmp_path, ServerSettings(keep_alive_s=1)) as gateway:
        line = await gateway.connect()
        await line.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer())[0] == 200
        assert await line.rest() == b""


async def test_a_body_that_stalls_is_refused(tmp_path: Path) -> None:
    """A body that stalls is refused with 408, and its connection is closed."""
    async with opened(tmp_path, upload_idle_s=0.5) as gateway:
        line = await gateway.connect()
        await line.send(head(b"Content-Length: 100000") + OPENING + JPEG)
        status, headers, body = await line.answer()
        assert (status, code_of(body), headers["connection"]) == (408, "upload-too-slow", "close")
        assert await line.rest() == b""
        await gateway.check_unaffected()


async def test_a_slow_body_is_refused(tmp_path: Path) -> None:
    """A body that arrives steadily but too slowly is refused when its time ends."""
    async with opened(tmp_path, upload_total_s=1.0) as gateway:
        line = await gateway.connect()
        await line.send(head(b"Content-Length: 100000") + OPENING + JPEG)
        await line.drip(forever(b"\0"))
        status, _, body = await line.answer()
        assert (status, code_of(body)) == (408, "upload-too-slow")
        await gateway.check_unaffected()


async def test_slow_json_is_refused(tmp_path: Path) -> None:
    """A JSON body that arrives byte by byte is refused when its time ends."""
    async with opened(tmp_path, upload_idle_s=1.0) as gateway:
        line = await gateway.connect()
        await line.send(head(b"Content-Length: 60000", path="/api/v1/images/fetch", kind=b"application/json"))
        await line.drip(forever(b" "))
        status, _, body = await line.answer()
        assert (status, code_of(body)) == (408, "upload-too-slow")
        await gateway.check_unaffected()


async def test_a_refused_endless_body_is_cut_off(tmp_path: Path) -> None:
    """A client that continues to send the body of a refused request is disconnected after a while."""
    async with opened(tmp_path, ServerSettings(head_s=0.5)) as gateway:
        line = await gateway.connect()
        await line.send(head(b"Transfer-Encoding: chunked", path="/nowhere"))
        assert (await line.answer())[0] == 404
        await line.drip(forever(chunk(b"z" * 10)))
        await line.rest()
        await gateway.check_unaffected()


async def test_a_client_that_does_not_read_is_disconnected(tmp_path: Path) -> None:
    """A client that does not read its response is disconnected, and the handler ends."""
    released = asyncio.Event()

    async def stream(scope: Scope, receive: Receive, send: Send) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            released.set()

        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        watching = asyncio.create_task(gone())
        while not released.is_set():
            await send({"type": "http.response.body", "body": b"z" * MEBIBYTE, "more_body": True})
            await asyncio.sleep(0)
        await watching

    async with serving(stream, "127.0.0.1", 0, ServerSettings(read_s=0.5)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(PATIENCE_S):
            await released.wait()
        writer.close()


# Too much


async def test_an_oversized_upload_is_refused_before_it_is_sent(gateway: SocketGateway) -> None:
    """A body with a Content-Length over the limit is refused before any byte of it was sent."""
    line = await gateway.connect()
    await line.send(head(b"Content-Length: 5000000000", b"Expect: 100-continue"))
    status, headers, body = await line.answer()
    assert (status, code_of(body), headers["connection"]) == (413, "file-too-large", "close")
    await gateway.check_unaffected()


@pytest.mark.parametrize("where", ["file", "before", "field", "after", "parts"])
async def test_an_endless_body_is_cut_off(where: str, gateway: SocketGateway) -> None:
    """An endless chunked body is refused soon after its limit, in every place of the form."""
    openings = {
        "file": OPENING + JPEG,
        "before": b"",
        "field": b'--x\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n',
        "after": OPENING + JPEG + CLOSING,
        "parts": b"",
    }
    more = b'--x\r\nContent-Disposition: form-data; name="bucket"\r\n\r\n1\r\n' if where == "parts" else b"z" * 4096
    line = await gateway.connect()
    await line.send(head(b"Transfer-Encoding: chunked") + (chunk(openings[where]) if openings[where] else b""))
    await line.drip(forever(chunk(more)), pause_s=0)
    reply = await line.rest()
    assert line.sent < MAX_UPLOAD + 16 * MEBIBYTE  # what the kernel's buffers take besides
    assert reply.split()[1] in (b"400", b"413"), reply
    await gateway.check_unaffected()


@pytest.mark.parametrize(
    ("length", "status"), [(b"50", 400), (b"0", 400), (b"-1", 400), (b"1e3", 400), (b"9" * 40, 400), (b"10, 20", 400)]
)
async def test_a_wrong_content_length_is_refused(length: bytes, status: int, gateway: SocketGateway) -> None:
    """A Content-Length that is too small, not a number, or two numbers is refused; the rest is no second request."""
    line = await gateway.connect()
    smuggled = b"POST /api/v1/images/fetch HTTP/1.1\r\nHost: x\r\n\r\n"
    await line.send(head(b"Content-Length: " + length) + OPENING + JPEG + CLOSING + smuggled)
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 %d" % status), reply
    assert b"HTTP/1.1 202" not in reply
    await gateway.check_unaffected()


async def test_an_incomplete_upload_stores_nothing(gateway: SocketGateway) -> None:
    """A body shorter than its Content-Length, whose client disconnects, stores nothing."""
    line = await gateway.connect()
    await line.send(head(b"Content-Length: 100000") + OPENING + JPEG)
    line.writer.write_eof()
    await line.rest()
    await gateway.check_unaffected()


WHOLE = chunk(OPENING + JPEG + CLOSING) + b"0\r\n\r\n"
HEALTH = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
AMBIGUOUS = {
    "length, then chunks": head(b"Content-Length: 4", b"Transfer-Encoding: chunked") + WHOLE,
    "chunks, then length": head(b"Transfer-Encoding: chunked", b"content-length: 400") + WHOLE,
    "chunks in HTTP/1.0": head(b"Transfer-Encoding: chunked").replace(b"HTTP/1.1", b"HTTP/1.0") + WHOLE,
    "two codings": head(b"Transfer-Encoding: chunked, identity") + WHOLE,
    "a folded coding": head(b"Transfer-Encoding:\r\n chunked") + WHOLE,
    "a folded header": head(b"X: a\r\n\tTransfer-Encoding: chunked", b"Content-Length: 4") + WHOLE,
    "a fold after the request line": b"GET /health/live HTTP/1.1\r\n X: y\r\nHost: x\r\n\r\n",
    "a bare line feed": head(b"X: a\nTransfer-Encoding: chunked") + WHOLE,
    "a bare line feed after the request line": HEALTH.replace(b"1.1\r\n", b"1.1\n"),
    "a bare line feed at the end": HEALTH[:-2] + b"\n",
    "bare line feeds only": HEALTH.replace(b"\r\n", b"\n"),
    "a bare carriage return": head(b"X: a\rTransfer-Encoding: chunked") + WHOLE,
}
FORM_DATA = OPENING + JPEG + CLOSING
SIZE = b"%x" % len(FORM_DATA)
AMBIGUOUS_CHUNKS = {
    "a chunk size": SIZE + b"\n" + FORM_DATA + b"\r\n0\r\n\r\n",
    "the end of a chunk": SIZE + b"\r\n" + FORM_DATA + b"\n0\r\n\r\n",
    "a later chunk size": chunk(FORM_DATA[:9]) + b"%x\n" % len(FORM_DATA[9:]) + FORM_DATA[9:] + b"\r\n0\r\n\r\n",
    "a chunk extension": SIZE + b";a=b\n" + FORM_DATA + b"\r\n0\r\n\r\n",
    "inside a chunk extension": SIZE + b";a=b\nc\r\n" + FORM_DATA + b"\r\n0\r\n\r\n",
    "a carriage return in a chunk extension": SIZE + b";a=b\rc\r\n" + FORM_DATA + b"\r\n0\r\n\r\n",
    "the last chunk size": chunk(FORM_DATA) + b"0\n\r\n",
    "the last chunk's extension": chunk(FORM_DATA) + b"0;a\n\r\n",
    "the end without trailers": chunk(FORM_DATA) + b"0\r\n\n",
    "a trailer field": chunk(FORM_DATA) + b"0\r\nX: y\n\r\n",
    "a later trailer field": chunk(FORM_DATA) + b"0\r\nX: y\r\nX: z\n\r\n",
    "the end of the trailers": chunk(FORM_DATA) + b"0\r\nX: y\r\n\n",
    "a folded trailer field": chunk(FORM_DATA) + b"0\r\nX: y\r\n z\r\n\r\n",
    "a carriage return in a trailer field": chunk(FORM_DATA) + b"0\r\nX: y\rz\r\n\r\n",
}


@pytest.mark.parametrize("request_", AMBIGUOUS.values(), ids=AMBIGUOUS)
@pytest.mark.parametrize("first", [b"", HEALTH], ids=["first", "second"])
async def test_a_request_of_ambiguous_length_is_refused(first: bytes, request_: bytes, gateway: SocketGateway) -> None:
    """What a proxy may read as another request gets 400 and ends its connection, also after a good one (RFC 9112)."""
    line = await gateway.connect()
    if first:
        await line.send(first)
        assert (await line.answer())[0] == 200
    await line.send(request_ + HEALTH)
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 400"), reply
    assert b"connection: close" in reply.lower()
    assert reply.count(b"HTTP/1.1 ") == 1
    assert code_of(reply.partition(b"\r\n\r\n")[2]) == "bad-request"
    await gateway.check_unaffected()


@pytest.mark.parametrize("body", AMBIGUOUS_CHUNKS.values(), ids=AMBIGUOUS_CHUNKS)
@pytest.mark.parametrize("pieces", [1, 2, 0], ids=["with the head", "after the head", "bytewise"])
async def test_a_chunked_body_with_other_line_ends_is_refused(pieces: int, body: bytes, gateway: SocketGateway) -> None:
    """Nothing of it is accepted, and what follows is not read as a request (RFC 9112, 2.2 and 7.1)."""
    line = await gateway.connect()
    opening = head(b"Transfer-Encoding: chunked")
    for piece in [opening + body] if pieces == 1 else [opening, body] if pieces else [opening, *bytewise(body)]:
        await line.send(piece)
    await line.send(HEALTH)
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 400"), reply
    assert b"connection: close" in reply.lower()
    assert reply.count(b"HTTP/1.1 ") == 1
    assert code_of(reply.partition(b"\r\n\r\n")[2]) == "bad-request"
    await gateway.check_unaffected()


@pytest.mark.parametrize("bytes_at_once", [1, 7, 1 << 20])
async def test_extensions_and_trailers_of_a_chunked_body_are_accepted(
    bytes_at_once: int, gateway: SocketGateway
) -> None:
    """Lines that end with CR LF are accepted, whatever the chunks contain, and the connection stays usable."""
    line = await gateway.connect()
    sizes = FORM_DATA[:20], FORM_DATA[20:21], FORM_DATA[21:]
    chunks = b"".join(b"%x;a=b \r\n%s\r\n" % (len(data), data) for data in sizes)
    request = head(b"Transfer-Encoding: chunked") + chunks + b"000;last\r\nX: y\r\nY: \r\n\r\n" + HEALTH
    for at in range(0, len(request), bytes_at_once):
        await line.send(request[at : at + bytes_at_once])
    assert [(await line.answer())[0] for _ in range(2)] == [202, 200]


async def test_a_head_may_arrive_bytewise_with_the_next_one(gateway: SocketGateway) -> None:
    """A head that arrives byte by byte is accepted, and so are two requests at once, and line feeds in a body."""
    line = await gateway.connect()
    for byte in bytewise(HEALTH):
        await line.send(byte)
    assert (await line.answer())[0] == 200
    await line.send(HEALTH + HEALTH)
    assert [(await line.answer())[0] for _ in range(2)] == [200, 200]
    await line.send(head(b"Content-Length: 9", path="/api/v1/images/fetch", kind=b"text/plain") + b"\n \n\t\n\n\r\n\n")
    assert (await line.answer())[0] == 415
    line.writer.close()
    await gateway.check_unaffected()


async def test_many_parts_end_the_form(gateway: SocketGateway) -> None:
    """Ten thousand parts are not parsed: the first repeated or unknown one ends the form."""
    for name in ("bucket", "other"):
        part = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nv\r\n'.encode()
        line = await gateway.connect()
        await line.send(head(b"Transfer-Encoding: chunked") + chunk(part * 10_000))
        reply = await line.rest()
        assert reply.startswith(b"HTTP/1.1 400"), reply
    await gateway.check_unaffected()


@pytest.mark.parametrize(
    "headers", [b"X: " + b"y" * 100_000 + b"\r\n", b"X: y\r\n" * 20_000, b"X" * 100_000], ids=["long", "many", "no-end"]
)
async def test_huge_part_headers_are_refused(headers: bytes, gateway: SocketGateway) -> None:
    """Part headers are limited: one too long, or too many, and the form is refused."""
    line = await gateway.connect()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n' + headers
    await line.send(head(b"Content-Length: 190000") + body)
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 400"), reply
    await gateway.check_unaffected()


@pytest.mark.parametrize(
    "headers",
    [b"X: " + b"y" * 40_000 + b"\r\n", b"X: " + b"y" * 4_000_000 + b"\r\n", b"X: y\r\n" * 200, b"X: y\r\n" * 200_000],
    ids=["long", "gigantic", "many", "very-many"],
)
async def test_a_gigantic_head_is_refused(headers: bytes, gateway: SocketGateway) -> None:
    """A head that is too long, or has too many headers, is refused with a problem, and its connection is closed."""
    line = await gateway.connect()
    await line.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    reply = await line.rest()
    assert reply.split()[1] in (b"400", b"431"), reply[:200]
    assert b"application/problem+json" in reply
    await gateway.check_unaffected()


async def test_a_long_path_is_refused(gateway: SocketGateway) -> None:
    """The request line counts towards the limit of the head."""
    line = await gateway.connect()
    await line.send(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await line.rest()).split()[1] in (b"400", b"431")
    await gateway.check_unaffected()


@pytest.mark.parametrize(
    "text",
    [
        '{"url": "http://x/", "metadata": ' + '{"a":' * 6000 + "1" + "}" * 6001,
        '{"url": "http://x/", "metadata": {"a": ' + "[" * 30_000 + "]" * 30_000 + "}}",
        "[" * 60_000,
        '{"url": "http://x/", "metadata": {"a": ' + "9" * 60_000 + "}}",
        '{"url": "http://x/", "metadata": {"a": 1e999}}',
        '{"url": "http://x/", "metadata": {"a": NaN}}',
        '{"url": "http://x/", "metadata": {"\\ud800": 1}}',
    ],
    ids=["objects", "lists", "open", "digits", "infinite", "nan", "surrogate"],
)
async def test_json_that_cannot_be_stored_is_refused(text: str, gateway: SocketGateway) -> None:
    """Deep nesting, infinite numbers and lone surrogates are refused, in body and form."""
    metadata = text.partition('"metadata": ')[2][:-1] or text
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{gateway.port}", timeout=PATIENCE_S) as client:
        body = await client.post(
            "/api/v1/images/fetch", content=text.encode(), headers={"Content-Type": "application/json"}
        )
        form = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, data={"metadata": metadata[:15_000]})
    assert body.status_code in (400, 422), body.text
    assert form.status_code == 400, form.text
    await gateway.check_unaffected()


# Too many


async def test_connections_beyond_the_limit_get_retry_after(tmp_path: Path) -> None:
    """Connections above the limit get 503 with Retry-After, until another one closes."""
    async with opened(tmp_path, ServerSettings(max_connections=2, head_s=600)) as gateway:
        ask = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        held = [await gateway.connect() for _ in range(2)]
        for line in held:
            await line.send(ask)
            assert (await line.answer())[0] == 200
        line = await gateway.connect()
        await line.send(ask)
        status, headers, body = await line.answer()
        assert (status, code_of(body)) == (503, "overloaded")
        assert int(headers["retry-after"]) > 0
        assert await line.rest() == b""
        for line in held:
            line.writer.close()
            await line.writer.wait_closed()
        async with asyncio.timeout(PATIENCE_S):
            while True:
                line = await gateway.connect()
                await line.send(ask)
                status = (await line.answer())[0]
                line.writer.close()
                if status == 200:
                    break
                await asyncio.sleep(PAUSE_S)
        await gateway.check_unaffected()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\0" * 64])
async def test_invalid_http_is_refused_with_a_problem(garbage: bytes, gateway: SocketGateway) -> None:
    """Bytes that are not HTTP get 400 with a problem, and the connection is closed."""
    line = await gateway.connect()
    await line.send(garbage + b"\r\n\r\n")
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 400"), reply
    assert code_of(reply.partition(b"\r\n\r\n")[2]) == "bad-request"
    await gateway.check_unaffected()
