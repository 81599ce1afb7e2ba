"""The Python client against a gateway in its own process, over a real socket."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import httpx
import pytest

from darkroom.commands.submit import lane_of
from gateway.client import AsyncDarkroom, Darkroom, NotFinished, Refused, Unreachable
from schemas.values import ImageState, Lane
from tests.support.gateway_components import JPEG, UPLOAD

MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Gateway:
    """A running gateway."""

    url: str
    pid: int

    def peak_memory(self) -> int:
        """Return the most bytes the process ever had resident."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:"))


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in its own process, stopped after the module's last test."""
    command = [sys.executable, "-m", "tests.support.gateway_server", str(tmp_path_factory.mktemp("gateway"))]
    root = Path(__file__).resolve().parents[4]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, text=True) as process:
        try:
            assert process.stdout is not None
            yield Gateway(f"http://127.0.0.1:{int(process.stdout.readline())}", process.pid)
        finally:
            process.kill()


def test_uploads_are_streamed_to_disk(gateway: Gateway, tmp_path: Path) -> None:
    """Three uploads of 40 MB at once raise the gateway's resident memory by less than one of them."""
    path = tmp_path / "large.jpg"
    path.write_bytes(JPEG + bytes(range(256)) * (40 * MEBIBYTE // 256))
    with Darkroom(gateway.url) as darkroom:
        darkroom.submit(JPEG)
        before = gateway.peak_memory()

        async def all_at_once() -> None:
            async with AsyncDarkroom(gateway.url) as client:
                await asyncio.gather(*(client.submit(path, bucket=f"b{number}") for number in range(3)))

        asyncio.run(all_at_once())
        grown = gateway.peak_memory() - before
    assert grown < 30 * MEBIBYTE, f"grew by {grown / MEBIBYTE:.1f} MiB"


def test_an_upload_without_a_length_is_cut_off_at_the_limit(gateway: Gateway) -> None:
    """A chunked upload over the limit gets 413 while it is still being sent, or the connection is closed."""

    def endless() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + JPEG
        for _ in range(200):
            yield bytes(MEBIBYTE)
        pytest.fail("two hundred megabytes were accepted")

    headers = {"content-type": "multipart/form-data; boundary=x"}
    try:
        answer = httpx.post(gateway.url + UPLOAD, content=endless(), headers=headers, timeout=60)
    except httpx.TransportError:
        return  # the server responded and closed while the client was still sending
    assert answer.status_code == 413


def test_the_client_carries_metadata_and_reads_status(gateway: Gateway, tmp_path: Path) -> None:
    """Images are submitted by path, bytes or URL, and have a status; `wait` ends after its timeout."""
    path = tmp_path / "cat.jpg"
    path.write_bytes(JPEG)
    with Darkroom(gateway.url) as darkroom:
        job = darkroom.submit(path, bucket="pets", metadata={"album": None})
        assert darkroom.status(job.job_id).status is ImageState.PROCESSING
        with pytest.raises(NotFinished) as waited:
            darkroom.wait(job.job_id, timeout_s=0.05)
        assert waited.value.status.job_id == job.job_id
        with pytest.raises(Refused) as early:
            darkroom.result(job.job_id)
        assert (early.value.code, early.value.status, early.value.retry_after_s) == ("not-finished", 409, 1)
        assert darkroom.submit("https://example.org/a.jpg").job_id != job.job_id
        assert darkroom.health().ready
        deletion = darkroom.delete(job.image_id)
        assert darkroom.status(deletion.job_id).status is ImageState.PROCESSING
        assert not darkroom.search("cat", limit=3).items


async def test_both_clients_send_into_the_lane_asked_for(gateway: Gateway) -> None:
    """Uploads and fetches are interactive unless sent as bulk; the response and the status have the lane."""
    with Darkroom(gateway.url) as darkroom:
        assert darkroom.submit(JPEG).lane is Lane.INTERACTIVE
        job = darkroom.submit(JPEG, lane=Lane.BULK)
        assert (job.lane, darkroom.status(job.job_id).lane) == (Lane.BULK, Lane.BULK)
    async with AsyncDarkroom(gateway.url) as client:
        for source in (JPEG, "https://example.org/a.jpg"):
            job = await client.submit(source, lane=Lane.BULK)
            assert (job.lane, (await client.status(job.job_id)).lane) == (Lane.BULK, Lane.BULK)


@pytest.mark.parametrize(
    ("count", "bulk", "lane"),
    [
        (1, None, Lane.INTERACTIVE),
        (20, None, Lane.INTERACTIVE),
        (21, None, Lane.BULK),
        (21, False, Lane.INTERACTIVE),
        (1, True, Lane.BULK),
    ],
)
def test_a_folder_of_many_is_a_bulk_import(count: int, bulk: bool | None, lane: Lane) -> None:
    """On the command line more than twenty images go into the bulk lane, unless an option overrides it."""
    assert lane_of(count, bulk) is lane


def test_an_error_has_its_code(gateway: Gateway, tmp_path: Path) -> None:
    """Errors of the server are raised with their stable code."""
    with Darkroom(gateway.url) as darkroom:
        for call, code in (
            (lambda: darkroom.submit(b"no image at all"), "unsupported-format"),
            (lambda: darkroom.submit(JPEG, bucket="a b"), "invalid-bucket"),
            (lambda: darkroom.status("x"), "not-found"),
            (lambda: darkroom.download("x"), "not-found"),
            (lambda: darkroom.search_like("x"), "not-found"),
        ):
            with pytest.raises(Refused) as refused:
                call()
            assert refused.value.code == code
        with pytest.raises(FileNotFoundError):
            darkroom.submit(tmp_path / "nothing.jpg")


def test_a_refused_connection_is_unreachable() -> None:
    """A refused connection raises Unreachable with the address."""
    with Darkroom("http://127.0.0.1:9") as darkroom, pytest.raises(Unreachable, match=r"127\.0\.0\.1:9"):
        darkroom.health()


async def test_a_503_is_retried_with_its_file() -> None:
    """After a 503 the whole file is sent again; after the last try Refused is raised."""
    bodies: list[int] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        bodies.append(len(await request.aread()))
        if len(bodies) < 2:
            return httpx.Response(503, headers={"retry-after": "0"}, text="unavailable")
        accepted = {"job_id": "j.1", "image_id": "j", "status_url": "s", "result_url": "r"}
        return httpx.Response(202, json=accepted)

    async with AsyncDarkroom("http://d", transport=httpx.MockTransport(serve)) as darkroom:
        assert (await darkroom.submit(JPEG)).job_id == "j.1"
    assert len(bodies) == 2
    assert bodies[0] == bodies[1] > len(JPEG)
    bodies.clear()
    async with AsyncDarkroom("http://d", tries=1, transport=httpx.MockTransport(serve)) as darkroom:
        with pytest.raises(Refused) as refused:
            await darkroom.submit(JPEG)
    assert (refused.value.status, refused.value.problem.detail) == (503, "unavailable")


@pytest.mark.parametrize("headers", [{"retry-after": "3000"}, {}])
async def test_a_long_rate_limit_is_raised_at_once(headers: dict[str, str]) -> None:
    """A 429 with a long Retry-After, or without one, is raised without a retry."""
    requests: list[str] = []

    async def serve(request: httpx.Request) -> httpx.Response:
        requests.append(request.url.path)
        return httpx.Response(429, headers=headers, text="full")

    async with AsyncDarkroom("http://d", transport=httpx.MockTransport(serve)) as darkroom:
        with pytest.raises(Refused) as refused:
            await darkroom.submit(JPEG)
    assert (refused.value.status, len(requests)) == (429, 1)


async def test_both_clients_describe_and_list(gateway: Gateway) -> None:
    """Details of an image are read and changed; a listing has filters, and a wrong one is refused."""
    with Darkroom(gateway.url) as darkroom:
        image_id = darkroom.submit(JPEG, metadata={"a": 1, "b": 2}).image_id
        assert darkroom.details(image_id).context == {"a": 1, "b": 2}
        changed = darkroom.annotate(image_id, tags=["beach"], context={"a": None})
        assert (changed.tags, changed.context) == (("beach",), {"b": 2})
        assert darkroom.images(tag=["x", "y"], state="completed", page_size=5).items == ()
        with pytest.raises(Refused, match="invalid-field"):
            darkroom.images(state="lost")
    async with AsyncDarkroom(gateway.url) as client:
        assert (await client.details(image_id)).filename == "image"
        assert (await client.annotate(image_id, category="trip")).tags == ("beach",)
        assert (await client.images(bucket="default")).next_cursor is None


class _Store(BaseHTTPRequestHandler):
    """An object store with one object, which records the request headers."""

    requests: ClassVar[list[dict[str, str]]] = []

    def do_GET(self) -> None:
        self.requests.append({name.lower(): value for name, value in self.headers.items()})
        self.send_response(200 if self.path == "/there" else 403)
        self.send_header("Content-Length", "5")
        self.end_headers()
        self.wfile.write(b"bytes")

    def log_message(self, *args: object) -> None:
        """Disable logging."""


@pytest.fixture
def store() -> Iterator[str]:
    """Return the address of an object store."""
    _Store.requests.clear()
    with ThreadingHTTPServer(("127.0.0.1", 0), _Store) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


async def test_a_link_to_the_store_is_followed_without_credentials(store: str) -> None:
    """A redirect to the object store is followed without the client's credentials."""
    link = f"{store}/there"

    def serve(request: httpx.Request) -> httpx.Response:
        assert request.headers["x-api-key"] == "dk_secret"
        return httpx.Response(307, headers={"location": link})

    with Darkroom("http://d", api_key="dk_secret", transport=httpx.MockTransport(serve)) as darkroom:
        assert darkroom.download("i") == b"bytes"
    async with AsyncDarkroom("http://d", api_key="dk_secret", transport=httpx.MockTransport(serve)) as client:
        assert await client.download("i") == b"bytes"
        link = f"{store}/expired"
        with pytest.raises(Refused, match="403"):
            await client.download("i")
        link = "http://127.0.0.1:9/"
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1"):
            await client.download("i")
    assert len(_Store.requests) == 3
    assert not any(headers.keys() & {"x-api-key", "authorization"} for headers in _Store.requests)
