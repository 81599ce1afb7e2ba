"""The fetcher against a real HTTP server with mostly hostile answers."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from agents.core.url_guard import Address
from agents.fetching.guarded_transport import Resolve, resolve
from agents.fetching.http_source import retry_after
from agents.stages import fetcher
from agents.stages.fetcher import FetcherSettings, fetch_image
from schemas.events.intake import FetchRequested, ImageFetched, Submission
from schemas.values import ErrorCode, Profile, new_image_id
from streams import topics
from streams.errors import Retryable
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings, Settings
from streams.stage import Emit, Reject, Resources
from streams.telemetry.health_board import HealthBoard
from tests.support import documents
from tests.support.fetching import LOCAL, open_fetching
from tests.support.web_source import Request, WebSource, serve

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 8


@pytest.fixture
async def web() -> AsyncIterator[WebSource]:
    async with serve() as source:
        yield source


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


def request(url: str, **more: object) -> FetchRequested:
    return FetchRequested.model_validate({"image_id": new_image_id(), "url": url, **more})


async def fetch(url: str, files: FileStore, resolver: Resolve = resolve, **settings: Any) -> ImageFetched | ErrorCode:
    """Fetch with the server's address allowed, asking the source each time; return the event, or the refusal's code."""
    settings = {"fresh_days": 0, "refused_hours": 0, **settings}
    async with open_fetching(files, resolver, **settings) as tools:
        outcome = await fetch_image(request(url), tools)
    if isinstance(outcome, Reject):
        assert outcome.message
        return outcome.code
    assert isinstance(outcome, Emit)
    [(topic, event)] = outcome.events
    assert topic is topics.FETCHED
    assert isinstance(event, ImageFetched)
    return event


async def test_stores_what_it_fetched(web: WebSource, tmp_path: Path, files: FileStore) -> None:
    """The stage, opened as the runtime opens it, stores the bytes under their hash and emits a complete event."""
    web.answer("/a.png", PNG, content_type="text/html", set_cookie="a=b; Path=/")
    event = request(
        web.url("/a.png"),
        owner="acme",
        generation=3,
        bucket="shop",
        filename="a.png",
        context={"sku": [1, None]},
        profile=Profile(stages=("resizer",)),
    )
    stage = fetcher.STAGE
    resources = Resources(Settings(), files, HealthBoard())
    assert stage.process is not None
    async with stage.open(FetcherSettings(allowed_networks=LOCAL), resources) as tools:
        outcomes = [await stage.process(event, tools) for _ in range(2)]

        assert stage.probe is not None
        await stage.probe(tools)

    assert isinstance(outcomes[0], Emit)
    [(topic, fetched)] = outcomes[0].events
    assert topic is topics.FETCHED
    assert isinstance(fetched, ImageFetched)
    digest = hashlib.sha256(PNG).hexdigest()
    assert fetched.original.key == f"originals/acme/{digest[:2]}/{digest}"
    assert (fetched.original.sha256, fetched.original.size) == (digest, len(PNG))
    assert fetched.original.content_type == "image/png"
    assert await files.get(fetched.original.key) == PNG
    assert fetched.submitted_at == event.occurred_at
    assert fetched.url == event.url
    for name in set(Submission.model_fields) - {"occurred_at", "submitted_at"}:
        assert getattr(fetched, name) == getattr(event, name), name
    assert isinstance(outcomes[1], Emit)
    assert outcomes[1].events[0][1].id == fetched.id
    assert web.connections == 1  # pooled
    assert all("cookie" not in r.headers for r in web.requests)
    assert all(r.headers["accept-encoding"] == "identity" for r in web.requests)


async def test_keeps_the_submission_time(web: WebSource, files: FileStore) -> None:
    """The event's submission time is passed on."""
    web.answer("/a", PNG)
    async with open_fetching(files) as tools:
        outcome = await fetch_image(request(web.url("/a"), submitted_at="2026-01-02T03:04:05Z"), tools)
    assert isinstance(outcome, Emit)
    assert isinstance(event := outcome.events[0][1], ImageFetched)
    assert event.submitted_at == "2026-01-02T03:04:05Z"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_follows_redirects(web: WebSource, files: FileStore, status: int) -> None:
    """Absolute and relative redirects are followed, also with spaces as servers write them."""
    web.answer("/a", b"", status, location="b/c d?x=1")
    web.answer("/b/c%20d?x=1", PNG)
    event = await fetch(web.url("/a"), files)
    assert isinstance(event, ImageFetched)
    assert event.url == web.url("/a")


async def test_counts_redirects(web: WebSource, files: FileStore) -> None:
    """As many redirects as allowed are followed, one more is refused; a loop ends."""
    for n in range(5):
        web.answer(f"/{n}", b"", 302, location=f"/{n + 1}")
    web.answer("/5", PNG)
    assert isinstance(await fetch(web.url("/0"), files), ImageFetched)
    assert await fetch(web.url("/0"), files, max_redirects=4) is ErrorCode.TOO_MANY_REDIRECTS
    web.answer("/loop", b"", 302, location="/loop")
    assert await fetch(web.url("/loop"), files) is ErrorCode.TOO_MANY_REDIRECTS


@pytest.mark.parametrize(
    "location",
    ["http://127.0.0.2/x", "http://10.0.0.1/", "http://[::1]/", "file:///etc/passwd", "//169.254.169.254/latest", "http://a@127.0.0.1/",
     "http://0x7f.1/", "http://[::ffff:127.0.0.2]/", "ftp://127.0.0.1/", "http://127.0.0.1:22/", "http://[", "//[", "http://[x]/",
     "http://a\u2100b/", "http://xn--a.example/"],
)  # fmt: skip
async def test_checks_every_redirect(web: WebSource, files: FileStore, location: str) -> None:
    """A redirect to a forbidden URL is refused like a first URL."""
    web.answer("/a", b"", 302, location=location)
    assert await fetch(web.url("/a"), files) is ErrorCode.URL_NOT_ALLOWED


async def test_refuses_a_url_that_the_client_cannot_read(files: FileStore) -> None:
    """A host that no client can decode, or that a resolver cannot encode, is refused rather than an internal error."""

    async def strict(host: str, port: int) -> Sequence[Address]:
        raise UnicodeError("label empty or too long")

    for host in ("xn--a.example", "a.xn--a.example"):
        assert await fetch(f"http://{host}/a.png", files, strict) is ErrorCode.URL_NOT_ALLOWED


async def test_checks_where_a_redirect_resolves_to(web: WebSource, files: FileStore) -> None:
    """A redirect to a name is checked by the name's address."""
    web.answer("/a", b"", 302, location=web.url("/b", host="inside.example"))
    web.answer("/b", PNG)
    resolver = Resolver({"127.0.0.1": ["127.0.0.1"], "inside.example": ["192.168.0.1"]})
    assert await fetch(web.url("/a"), files, resolver) is ErrorCode.URL_NOT_ALLOWED
    assert [r.path for r in web.requests] == ["/a"]


class Resolver:
    """Resolves names from a table: one list of addresses per query, the last one repeatedly."""

    def __init__(self, table: dict[str, list[str]], *later: dict[str, list[str]]) -> None:
        self._tables = [table, *later]
        self.queries: list[str] = []

    async def __call__(self, host: str, port: int) -> Sequence[Address]:
        self.queries.append(host)
        table = self._tables[min(self.queries.count(host), len(self._tables)) - 1]
        return [ip_address(text) for text in table[host]]


async def test_connects_to_what_it_checked(web: WebSource, files: FileStore) -> None:
    """A name with another address at the second query is connected to at the checked address, under its own name."""
    web.answer("/a", PNG)
    resolver = Resolver({"rebind.example": ["127.0.0.1"]}, {"rebind.example": ["127.0.0.2"]})
    assert isinstance(await fetch(web.url("/a", host="rebind.example"), files, resolver), ImageFetched)
    assert resolver.queries == ["rebind.example"]
    assert web.requests[0].peer == "127.0.0.1"
    assert web.requests[0].headers["host"] == f"rebind.example:{web.port}"


async def test_checks_each_new_connection(web: WebSource, files: FileStore) -> None:
    """A name that changes to a private address is refused at the next connection."""
    web.answer("/a", b"", 302, location="/b", connection="close")
    web.answer("/b", PNG)
    resolver = Resolver({"rebind.example": ["127.0.0.1"]}, {"rebind.example": ["127.0.0.2"]})
    assert await fetch(web.url("/a", host="rebind.example"), files, resolver) is ErrorCode.URL_NOT_ALLOWED
    assert len(web.requests) == 1


@pytest.mark.parametrize("answers", [["127.0.0.1", "10.0.0.1"], ["::ffff:127.0.0.2"], ["64:ff9b::7f00:2"], []])
async def test_refuses_a_name_with_a_private_address(web: WebSource, files: FileStore, answers: list[str]) -> None:
    """One private address among a name's addresses, in any form, refuses the name."""
    resolver = Resolver({"mixed.example": answers})
    assert await fetch(web.url("/a", host="mixed.example"), files, resolver) is ErrorCode.URL_NOT_ALLOWED
    assert web.connections == 0


async def test_refuses_loopback_by_default(web: WebSource, files: FileStore) -> None:
    """By default the machine itself cannot be fetched from, by address or by name."""
    for host in ("127.0.0.1", "localhost"):
        assert await fetch(web.url("/a", host=host), files, allowed_networks=()) is ErrorCode.URL_NOT_ALLOWED
    assert web.connections == 0


async def test_tries_the_next_address(web: WebSource, files: FileStore) -> None:
    """When the first address of a host does not respond, the next one is connected to."""
    web.answer("/a", PNG)
    networks = (ip_network("127.0.0.1/32"), ip_network("127.0.0.9/32"))
    resolver = Resolver({"two.example": ["127.0.0.9", "127.0.0.1"]})
    found = await fetch(web.url("/a", host="two.example"), files, resolver, allowed_networks=networks)
    assert isinstance(found, ImageFetched)


async def test_tls_checks_the_name(files: FileStore, tmp_path: Path) -> None:
    """A connection to a pinned address sends the name as SNI, and refuses a certificate of another name."""
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("images.example").configure_cert(context)
    names: list[str | None] = []
    context.sni_callback = lambda _socket, name, _context: names.append(name)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    resolver = Resolver({"images.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    async with serve(tls=context) as web:
        web.answer("/a", PNG)
        good, other = (web.url("/a", host=f"{name}.example", scheme="https") for name in ("images", "other"))
        assert isinstance(await fetch(good, files, resolver, ca_file=tmp_path / "ca.pem"), ImageFetched)
        assert names == ["images.example"]
        assert await fetch(other, files, resolver, ca_file=tmp_path / "ca.pem") is ErrorCode.SOURCE_REFUSED
        assert await fetch(good, files, resolver) is ErrorCode.SOURCE_REFUSED


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (404, ErrorCode.SOURCE_NOT_FOUND),
        (410, ErrorCode.SOURCE_NOT_FOUND),
        (401, ErrorCode.SOURCE_REFUSED),
        (403, ErrorCode.SOURCE_REFUSED),
        (400, ErrorCode.SOURCE_REFUSED),
        (451, ErrorCode.SOURCE_REFUSED),
        (206, ErrorCode.SOURCE_REFUSED),
        (304, ErrorCode.SOURCE_REFUSED),
        (302, ErrorCode.SOURCE_REFUSED),  # without a Location
        (204, ErrorCode.EMPTY_FILE),
        (200, ErrorCode.EMPTY_FILE),
    ],
)
async def test_final_answers(web: WebSource, files: FileStore, status: int, code: ErrorCode) -> None:
    """A source without the file, or that refuses it, is final."""
    web.answer("/a", b"", status)
    assert await fetch(web.url("/a"), files) is code


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
async def test_retries_a_failing_source(web: WebSource, files: FileStore, status: int) -> None:
    """A failing source is retried, after its Retry-After, within the configured limit."""
    web.answer("/a", b"", status)
    with pytest.raises(Retryable) as caught:
        await fetch(web.url("/a"), files)
    assert (caught.value.code, caught.value.after_s) == (ErrorCode.SOURCE_UNAVAILABLE, None)
    for header, delay in (("120", 120.0), ("999999999", 1800.0)):
        async with serve() as another:
            another.answer("/a", b"", status, retry_after=header)
            with pytest.raises(Retryable) as caught:
                await fetch(another.url("/a"), files)
            assert caught.value.after_s == delay


@given(st.integers(-10_000, 10_000))
def test_reads_retry_after_as_a_date(seconds: int) -> None:
    """A Retry-After date means the seconds until then, at least 0."""
    now = datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)
    assert retry_after(format_datetime(now + timedelta(seconds=seconds), usegmt=True), now) == max(0, seconds)


@pytest.mark.parametrize("zone", ["+99999999999999", "-99999999999999", "+2400"])
def test_a_retry_after_in_an_impossible_zone_counts_as_absent(zone: str) -> None:
    """A zone beyond what a date can have is unreadable."""
    assert retry_after(f"Fri, 31 Dec 2027 23:59:59 {zone}", datetime.now(UTC)) is None


@given(st.text() | st.from_regex(r"Fri, [0-9]{1,9} Dec [0-9]{1,20} [0-9]{1,9}:59:[0-9]{1,9} [+-]?[0-9]{0,30}"))
def test_survives_any_retry_after(value: str) -> None:
    """An unreadable Retry-After counts as absent."""
    found = retry_after(value, datetime.now(UTC))
    assert found is None or found >= 0


async def test_a_closed_port_is_retryable(files: FileStore) -> None:
    """A closed port is an unavailable dependency."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with pytest.raises(Retryable) as caught:
        await fetch(f"http://127.0.0.1:{port}/", files)
    assert caught.value.code is ErrorCode.SOURCE_UNAVAILABLE


@pytest.mark.parametrize(("number", "final"), [(socket.EAI_NONAME, True), (socket.EAI_AGAIN, False)])
async def test_names_that_do_not_resolve(files: FileStore, number: int, final: bool) -> None:
    """A host that does not exist is final; a resolver that does not answer is retried."""

    async def broken(host: str, port: int) -> Sequence[Address]:
        raise socket.gaierror(number, "no")

    if final:
        assert await fetch("http://nowhere.example/", files, broken) is ErrorCode.SOURCE_NOT_FOUND
    else:
        with pytest.raises(Retryable):
            await fetch("http://nowhere.example/", files, broken)


async def test_total_timeout(web: WebSource, files: FileStore) -> None:
    """A source that sends a byte at a time is aborted after the total timeout."""
    dripped = 0

    async def send_slowly(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal dripped
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + PNG[:64])
        while True:
            writer.write(b"x")
            await writer.drain()
            dripped += 1
            await asyncio.sleep(0.02)

    web.answers["/a"] = send_slowly
    with pytest.raises(Retryable, match="too long"):
        await fetch(web.url("/a"), files, total_timeout_s=0.5, idle_timeout_s=5)
    assert dripped > 1


async def test_idle_timeout(web: WebSource, files: FileStore) -> None:
    """A source that stops in the middle is aborted after the idle timeout, long before the total one."""

    async def stop(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + PNG)
        await asyncio.sleep(3600)

    web.answers["/a"] = stop
    with pytest.raises(Retryable, match="too long"):
        await fetch(web.url("/a"), files, total_timeout_s=3600, idle_timeout_s=0.2)


async def test_truncated_body(web: WebSource, files: FileStore) -> None:
    """A body shorter than declared is a connection error, not an image."""

    async def stop(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n" + PNG)
        await writer.drain()
        writer.close()

    web.answers["/a"] = stop
    with pytest.raises(Retryable):
        await fetch(web.url("/a"), files)
    assert [info async for info in files.list("originals/")] == []


async def test_endless_body(web: WebSource, files: FileStore) -> None:
    """A body without a length is cut off at the limit, up to what the sockets buffered."""
    sent = 0

    async def endless(request: Request, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        chunk = (PNG * 32)[:65536]
        while True:
            writer.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            await writer.drain()
            sent += len(chunk)

    web.answers["/a"] = endless
    assert await fetch(web.url("/a"), files, max_bytes=1_000_000) is ErrorCode.FILE_TOO_LARGE
    assert sent < 50_000_000
    assert [info async for info in files.list("originals/")] == []


async def test_declared_length_above_the_limit(web: WebSource, files: FileStore) -> None:
    """A declared length above the limit is refused before the body; exactly the limit is accepted."""

    async def announce(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 50000001\r\n\r\n")
        await asyncio.sleep(3600)

    web.answers["/a"] = announce
    assert await fetch(web.url("/a"), files, total_timeout_s=3600) is ErrorCode.FILE_TOO_LARGE
    web.answer("/b", PNG)
    assert isinstance(await fetch(web.url("/b"), files, max_bytes=len(PNG)), ImageFetched)
    assert await fetch(web.url("/b"), files, max_bytes=len(PNG) - 1) is ErrorCode.FILE_TOO_LARGE


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "gzip, gzip"])
async def test_content_encoding_is_refused(web: WebSource, files: FileStore, coding: str) -> None:
    """A compressed answer was not requested and is never decompressed."""
    web.answer("/a", gzip.compress(PNG + bytes(10_000_000)), content_encoding=coding)
    assert await fetch(web.url("/a"), files) is ErrorCode.SOURCE_REFUSED


async def test_a_document_is_fetched(web: WebSource, files: FileStore) -> None:
    """A PDF is one of the formats, whatever its source calls it."""
    web.answer("/a", documents.written_pdf(["Invoice"]), content_type="image/png")
    fetched = await fetch(web.url("/a"), files)
    assert isinstance(fetched, ImageFetched)
    assert fetched.original.content_type == "application/pdf"


@pytest.mark.parametrize(
    "body",
    [b"<!doctype html><p>please log in" * 10, b"\x1f\x8b\x08" + bytes(100), b"x", b"%!PS-Adobe-3.0 PDF" + bytes(99)],
)
async def test_not_an_image(web: WebSource, files: FileStore, body: bytes) -> None:
    """The first bytes decide the format, not the source's content type."""
    web.answer("/a", body, content_type="image/png")
    assert await fetch(web.url("/a"), files) is ErrorCode.NOT_AN_IMAGE


async def test_bytes_in_small_pieces(web: WebSource, files: FileStore) -> None:
    """An image that arrives byte by byte is the same image."""

    async def pieces(request: Request, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
        for byte in PNG[:300]:
            writer.write(b"1\r\n%c\r\n" % byte)
            await writer.drain()
        writer.write(b"0\r\n\r\n")

    web.answers["/a"] = pieces
    event = await fetch(web.url("/a"), files)
    assert isinstance(event, ImageFetched)
    assert event.original.sha256 == hashlib.sha256(PNG[:300]).hexdigest()


async def test_fetches_over_ipv6(files: FileStore) -> None:
    """An allowed IPv6 literal is fetched from; its neighbours are refused."""
    async with serve(host="::1") as web:
        web.answer("/a", PNG)
        allowed = (ip_network("::1/128"),)
        assert isinstance(await fetch(web.url("/a", host="[::1]"), files, allowed_networks=allowed), ImageFetched)
        assert web.requests[0].headers["host"] == f"[::1]:{web.port}"
        for host in ("[::2]", "[fe80::1]", "[::ffff:127.0.0.1]", "[64:ff9b::10.0.0.1]", "[2002:7f00:1::]"):
            assert await fetch(web.url("/a", host=host), files, allowed_networks=allowed) is ErrorCode.URL_NOT_ALLOWED
