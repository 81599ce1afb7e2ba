"""Clients that send too slowly, too much, or what is no request: each is cut off or refused, and others are served."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
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
class Door:
    """A gateway on a socket, and what it accepted."""

    port: int
    files: FaultyFiles
    sink: Sink

    async def connect(self) -> Line:
        return await connected(self.port)

    async def still_well(self) -> None:
        """Check that others are served, and that nothing but their image was accepted."""
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{self.port}", timeout=PATIENCE_S) as client:
            answer = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)})
        assert answer.status_code == 202, answer.text
        assert len(self.sink.sent) == 1
        assert len(await self.files.receipts()) == 1
        assert len([key for key in await self.files.objects() if key.startswith("originals/")]) == 1


@asynccontextmanager
async def opened(folder: Path, server: ServerSettings | None = None, **changes: object) -> AsyncIterator[Door]:
    """Open a gateway on a socket."""
    sink = Sink()
    async with open_files(FilesSettings(directory=folder / "objects")) as files:
        frail = FaultyFiles(files)
        own = settings(max_upload_bytes=MAX_UPLOAD, spool_dir=folder, **changes)
        app = ingest_app(own, IngestComponents(files=frail, events=sink, readiness=StubReadiness()))
        async with serving(app, "127.0.0.1", 0, server or ServerSettings()) as port:
            yield Door(port, frail, sink)
    assert not list(folder.glob("darkroom-upload-*")), "something is left on disk"


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    async with opened(tmp_path) as found:
        yield found


def head(*lines: bytes, path: str = UPLOAD, kind: bytes = FORM) -> bytes:
    """Return the head of a POST."""
    return b"\r\n".join([f"POST {path} HTTP/1.1".encode(), b"Host: x", b"Content-Type: " + kind, *lines, b"", b""])


def chunk(data: bytes) -> bytes:
    """Return a chunk of a body without a length."""
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
async def test_a_head_that_trickles_is_cut(first: bytes, tmp_path: Path) -> None:
    """Slow-loris: who has not sent a whole head in time is cut, however steadily its headers trickle in."""
    async with opened(tmp_path, ServerSettings(head_s=0.5)) as door:
        line = await door.connect()
        await line.send(first)
        await line.drip(forever(b"X: y\r\n") if first else iter(()))
        assert await line.rest() == b""
        await door.still_well()


async def test_a_second_head_that_trickles_is_cut_too(tmp_path: Path) -> None:
    """A connection that had an honest request first has no more time for its next head than a new one."""
    async with opened(tmp_path, ServerSettings(head_s=0.5, keep_alive_s=600)) as door:
        line = await door.connect()
        await line.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer())[0] == 200
        await line.drip(forever(b"G"))
        assert await line.rest() == b""
        await door.still_well()


async def test_a_connection_without_a_request_is_cut(tmp_path: Path) -> None:
    """A connection that was used is kept for the next request only so long."""
    async with opened(tmp_path, ServerSettings(keep_alive_s=1)) as door:
        line = await door.connect()
        await line.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await line.answer())[0] == 200
        assert await line.rest() == b""


async def test_a_body_that_stalls_is_refused(tmp_path: Path) -> None:
    """A body of which nothing more comes is refused with 408, and its connection is closed."""
    async with opened(tmp_path, upload_idle_s=0.5) as door:
        line = await door.connect()
        await line.send(head(b"Content-Length: 100000") + OPENING + JPEG)
        status, headers, body = await line.answer()
        assert (status, code_of(body), headers["connection"]) == (408, "upload-too-slow", "close")
        assert await line.rest() == b""
        await door.still_well()


async def test_a_body_that_trickles_is_refused(tmp_path: Path) -> None:
    """A body that comes steadily but would take for ever is refused when its time is over."""
    async with opened(tmp_path, upload_total_s=1.0) as door:
        line = await door.connect()
        await line.send(head(b"Content-Length: 100000") + OPENING + JPEG)
        await line.drip(forever(b"\0"))
        status, _, body = await line.answer()
        assert (status, code_of(body)) == (408, "upload-too-slow")
        await door.still_well()


async def test_json_that_trickles_is_refused(tmp_path: Path) -> None:
    """A JSON body that comes byte by byte is refused when its time is over."""
    async with opened(tmp_path, upload_idle_s=1.0) as door:
        line = await door.connect()
        await line.send(head(b"Content-Length: 60000", path="/api/v1/images/fetch", kind=b"application/json"))
        await line.drip(forever(b" "))
        status, _, body = await line.answer()
        assert (status, code_of(body)) == (408, "upload-too-slow")
        await door.still_well()


async def test_a_refused_body_that_never_ends_is_cut(tmp_path: Path) -> None:
    """Who goes on sending the body of a request that was already answered is cut after a while."""
    async with opened(tmp_path, ServerSettings(head_s=0.5)) as door:
        line = await door.connect()
        await line.send(head(b"Transfer-Encoding: chunked", path="/nowhere"))
        assert (await line.answer())[0] == 404
        await line.drip(forever(chunk(b"z" * 10)))
        await line.rest()
        await door.still_well()


async def test_who_does_not_read_its_answer_is_cut(tmp_path: Path) -> None:
    """A client that leaves unread what it is sent is cut, and the handler that sends it ends."""
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


async def test_an_oversized_upload_is_refused_before_it_is_sent(door: Door) -> None:
    """By its Content-Length a body that is too large is refused before a byte of it was sent."""
    line = await door.connect()
    await line.send(head(b"Content-Length: 5000000000", b"Expect: 100-continue"))
    status, headers, body = await line.answer()
    assert (status, code_of(body), headers["connection"]) == (413, "file-too-large", "close")
    await door.still_well()


@pytest.mark.parametrize("where", ["file", "before", "field", "after", "parts"])
async def test_a_body_that_never_ends_is_cut(where: str, door: Door) -> None:
    """A chunked body that never ends is refused soon after its limit, wherever in the form it does not end."""
    openings = {
        "file": OPENING + JPEG,
        "before": b"",
        "field": b'--x\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n',
        "after": OPENING + JPEG + CLOSING,
        "parts": b"",
    }
    more = b'--x\r\nContent-Disposition: form-data; name="bucket"\r\n\r\n1\r\n' if where == "parts" else b"z" * 4096
    line = await door.connect()
    await line.send(head(b"Transfer-Encoding: chunked") + (chunk(openings[where]) if openings[where] else b""))
    await line.drip(forever(chunk(more)), pause_s=0)
    reply = await line.rest()
    assert line.sent < MAX_UPLOAD + 16 * MEBIBYTE  # what the kernel's buffers take besides
    assert reply.split()[1] in (b"400", b"413"), reply
    await door.still_well()


@pytest.mark.parametrize(
    ("length", "status"), [(b"50", 400), (b"0", 400), (b"-1", 400), (b"1e3", 400), (b"9" * 40, 400), (b"10, 20", 400)]
)
async def test_a_content_length_that_lies_is_no_upload(length: bytes, status: int, door: Door) -> None:
    """A length that is too small, no number, or two numbers is refused; nothing behind it becomes a second request."""
    line = await door.connect()
    smuggled = b"POST /api/v1/images/fetch HTTP/1.1\r\nHost: x\r\n\r\n"
    await line.send(head(b"Content-Length: " + length) + OPENING + JPEG + CLOSING + smuggled)
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 %d" % status), reply
    assert b"HTTP/1.1 202" not in reply
    await door.still_well()


async def test_an_upload_that_breaks_off_is_no_upload(door: Door) -> None:
    """A body shorter than its Content-Length, whose sender then hangs up, leaves nothing behind."""
    line = await door.connect()
    await line.send(head(b"Content-Length: 100000") + OPENING + JPEG)
    line.writer.write_eof()
    await line.rest()
    await door.still_well()


async def test_a_length_and_chunks_are_not_both_believed(door: Door) -> None:
    """With Content-Length and chunks together there is one request, ended by its last chunk, and no second inside."""
    line = await door.connect()
    body = chunk(OPENING + b"no image at all, by its first bytes" + CLOSING) + b"0\r\n\r\n"
    await line.send(head(b"Content-Length: 4", b"Transfer-Encoding: chunked") + body)
    status, _, _ = await line.answer()
    assert status in (400, 415)
    line.writer.close()
    await door.still_well()


async def test_many_parts_are_refused_at_the_first_too_many(door: Door) -> None:
    """Ten thousand parts are not taken apart: the second of a name, or the first unknown one, ends it."""
    for name in ("bucket", "other"):
        part = f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\nv\r\n'.encode()
        line = await door.connect()
        await line.send(head(b"Transfer-Encoding: chunked") + chunk(part * 10_000))
        reply = await line.rest()
        assert reply.startswith(b"HTTP/1.1 400"), reply
    await door.still_well()


@pytest.mark.parametrize(
    "headers", [b"X: " + b"y" * 100_000 + b"\r\n", b"X: y\r\n" * 20_000, b"X" * 100_000], ids=["long", "many", "no-end"]
)
async def test_huge_part_headers_are_refused(headers: bytes, door: Door) -> None:
    """The head of a part of a form is bounded: one header too long, or too many, and the form is refused."""
    line = await door.connect()
    body = b'--x\r\nContent-Disposition: form-data; name="file"; filename="cat.jpg"\r\n' + headers
    await line.send(head(b"Content-Length: 190000") + body)
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 400"), reply
    await door.still_well()


@pytest.mark.parametrize(
    "headers",
    [b"X: " + b"y" * 40_000 + b"\r\n", b"X: " + b"y" * 4_000_000 + b"\r\n", b"X: y\r\n" * 200, b"X: y\r\n" * 200_000],
    ids=["long", "gigantic", "many", "very-many"],
)
async def test_a_gigantic_head_is_refused(headers: bytes, door: Door) -> None:
    """A head that is too long, or has too many headers, is refused as a problem, and its connection is closed."""
    line = await door.connect()
    await line.send(b"GET /health/live HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    reply = await line.rest()
    assert reply.split()[1] in (b"400", b"431"), reply[:200]
    assert b"application/problem+json" in reply
    await door.still_well()


async def test_a_long_path_is_refused(door: Door) -> None:
    """The line of a request counts as its head does."""
    line = await door.connect()
    await line.send(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await line.rest()).split()[1] in (b"400", b"431")
    await door.still_well()


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
async def test_json_that_is_too_deep_or_cannot_be_written_again_is_refused(text: str, door: Door) -> None:
    """Deep nesting, numbers without end and halves of characters are refused as what they are, in body and form."""
    metadata = text.partition('"metadata": ')[2][:-1] or text
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{door.port}", timeout=PATIENCE_S) as client:
        body = await client.post(
            "/api/v1/images/fetch", content=text.encode(), headers={"Content-Type": "application/json"}
        )
        form = await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, data={"metadata": metadata[:15_000]})
    assert body.status_code in (400, 422), body.text
    assert form.status_code == 400, form.text
    await door.still_well()


# Too many


async def test_connections_beyond_the_limit_are_told_to_come_back(tmp_path: Path) -> None:
    """With all connections taken the next is answered 503 with Retry-After; one that ends makes room."""
    async with opened(tmp_path, ServerSettings(max_connections=2, head_s=600)) as door:
        ask = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
        held = [await door.connect() for _ in range(2)]
        for line in held:
            await line.send(ask)
            assert (await line.answer())[0] == 200
        line = await door.connect()
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
                line = await door.connect()
                await line.send(ask)
                status = (await line.answer())[0]
                line.writer.close()
                if status == 200:
                    break
                await asyncio.sleep(PAUSE_S)
        await door.still_well()


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"\0" * 64])
async def test_what_is_no_http_is_refused_as_a_problem(garbage: bytes, door: Door) -> None:
    """Bytes that are no HTTP request are answered with 400 and a problem, and the connection is closed."""
    line = await door.connect()
    await line.send(garbage + b"\r\n\r\n")
    reply = await line.rest()
    assert reply.startswith(b"HTTP/1.1 400"), reply
    assert code_of(reply.partition(b"\r\n\r\n")[2]) == "bad-request"
    await door.still_well()
