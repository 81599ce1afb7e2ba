"""Delivery over HTTP: ranges, conditions, names, caching, and no content that a browser could execute."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.http.byte_ranges import ByteRange, OutOfRange, read_range
from gateway.images.delivery import disposition
from schemas.values import DEFAULT_OWNER, ImageState, Rendition, StageState, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore
from streams.process.http_server import serving
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord, StageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import BASE, Sink, StubReadiness, client_of, refused, settings
from tests.support.read_models import merge

IMAGES = "/api/v1/images"
DATA = bytes(range(256)) * 400
SHA256 = hashlib.sha256(DATA).hexdigest()
ETAG = f'"{SHA256}"'
MADE = "2026-03-01T10:20:30.500Z"
MADE_HTTP = "Sun, 01 Mar 2026 10:20:30 GMT"


class Linking:
    """The real folder, as a store with presigned links."""

    def __init__(self, files: FileStore) -> None:
        self._files = files

    def __getattr__(self, name: str) -> Any:
        return getattr(self._files, name)

    async def presign_get(
        self, key: str, *, expires_s: int, filename: str | None = None, inline: bool = False
    ) -> str | None:
        return f"https://files.example.org/{key}?for={expires_s}&name={filename}&inline={inline}"


@dataclass
class Server:
    """The embedded gateway on a real folder and the real in-process read model."""

    files: FileStore
    read_model: ReadModel

    @asynccontextmanager
    async def client(self, *, files: Any = None, **changes: object) -> AsyncIterator[httpx.AsyncClient]:
        """Open a client of the gateway with these settings."""
        components = QueryComponents(
            files=files or self.files, events=Sink(), read_model=self.read_model, readiness=StubReadiness()
        )
        async with client_of(embedded_app(settings(**changes), components)) as client:
            yield client

    async def image(
        self, *, filename: str | None = "cat.jpg", kind: str = "image/webp", data: bytes = DATA, at: str | None = MADE
    ) -> str:
        """Store an image of one size, `medium`; return the path of its bytes."""
        image_id = new_image_id()
        ref = await self.files.put(image_key(image_id, 1, "medium"), data, content_type=kind)
        rendition = Rendition(name="medium", object=ref, width=4, height=3, aspect_ratio=4 / 3, format="webp")
        record = ImageRecord(
            image_id=image_id, owner=DEFAULT_OWNER, generation=1, state=ImageState.COMPLETED, filename=filename,
            renditions=(rendition,), stages={"resizer": StageRecord(state=StageState.DONE, finished_at=at)},
        )  # fmt: skip
        await self.read_model.begin(record)
        return f"{IMAGES}/{image_id}/direct"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A gateway without images."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        yield Server(files, read_model)


async def test_the_bytes_come_with_all_headers(server: Server) -> None:
    """A plain GET returns type, length, ETag, digest, date and name, and headers against sniffing and scripts."""
    path = await server.image()
    async with server.client() as client:
        answer = await client.get(path)
    assert answer.content == DATA
    headers = dict(answer.headers)
    assert {name: headers.get(name) for name in (
        "content-type", "content-length", "etag", "accept-ranges", "last-modified", "content-disposition",
        "repr-digest", "cache-control", "x-content-type-options", "content-security-policy",
        "cross-origin-resource-policy",
    )} == {
        "content-type": "image/webp", "content-length": str(len(DATA)), "etag": ETAG, "accept-ranges": "bytes",
        "last-modified": MADE_HTTP, "content-disposition": 'inline; filename="cat.webp"',
        "repr-digest": f"sha-256=:{base64.b64encode(hashlib.sha256(DATA).digest()).decode()}:",
        "cache-control": "private, no-cache", "x-content-type-options": "nosniff",
        "content-security-policy": "default-src 'none'; sandbox", "cross-origin-resource-policy": "same-origin",
    }  # fmt: skip


async def test_ranges_conditions_and_head_on_a_real_connection(server: Server) -> None:
    """Over a socket: HEAD has no body, a range has its bytes, If-Range and If-None-Match are applied."""
    path = await server.image()
    components = QueryComponents(
        files=server.files, events=Sink(), read_model=server.read_model, readiness=StubReadiness()
    )
    async with (
        serving(embedded_app(settings(), components), "127.0.0.1", 0) as port,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client,
    ):
        head = await client.head(path, headers={"range": "bytes=0-9"})
        assert (head.status_code, head.content) == (200, b"")
        assert (head.headers["content-length"], head.headers["etag"]) == (str(len(DATA)), ETAG)
        part = await client.get(path, headers={"range": "bytes=1000-1999"})
        assert (part.status_code, part.content) == (206, DATA[1000:2000])
        assert part.headers["content-range"] == f"bytes 1000-1999/{len(DATA)}"
        assert (part.headers["content-length"], part.headers["etag"]) == ("1000", ETAG)
        rest = await client.get(path, headers={"range": "bytes=-7", "if-range": ETAG})
        assert (rest.status_code, rest.content) == (206, DATA[-7:])
        for other in ('"other"', f"W/{ETAG}", MADE_HTTP):
            whole = await client.get(path, headers={"range": "bytes=-7", "if-range": other})
            assert (whole.status_code, whole.content) == (200, DATA), other
        known = await client.get(path, headers={"if-none-match": ETAG, "range": "bytes=0-1"})
        assert (known.status_code, known.content) == (304, b"")
        for asked in (f"bytes={len(DATA)}-", "bytes=-0"):
            beyond = await client.get(path, headers={"range": asked})
            refused(beyond, 416, "range-not-satisfiable")
            assert beyond.headers["content-range"] == f"bytes */{len(DATA)}"
        again = await client.get(path)
        assert (again.status_code, again.content) == (200, DATA)


@pytest.mark.parametrize(
    ("header", "wanted"),
    [
        ("bytes=0-0", (0, 0)), ("bytes=0-", (0, 9)), ("bytes=3-99", (3, 9)), ("bytes=-3", (7, 9)),
        ("bytes=-99", (0, 9)), ("BYTES= 2-4 ", (2, 4)), ("bytes=9-9", (9, 9)), (None, None), ("", None),
        ("bytes=-", None), ("bytes=4-2", None), ("bytes=0-1,3-4", None), ("items=0-1", None), ("bytes=a-b", None),
        ("bytes=٣-٤", None), ("bytes=0x1-2", None), (f"bytes={'9' * 30}-", None),
    ],
)  # fmt: skip
def test_a_range_is_parsed(header: str | None, wanted: tuple[int, int] | None) -> None:
    """A single range is parsed as RFC 9110 defines; an invalid one, or several, means all bytes."""
    found = read_range(header, 10)
    assert found == (None if wanted is None else ByteRange(*wanted, 10))


@pytest.mark.parametrize(("header", "size"), [("bytes=10-", 10), ("bytes=-0", 10), ("bytes=-5", 0), ("bytes=0-", 0)])
def test_a_range_without_a_byte_is_out_of_range(header: str, size: int) -> None:
    """A range without any existing byte is out of range."""
    with pytest.raises(OutOfRange):
        read_range(header, size)


async def test_a_date_is_a_condition_only_without_an_etag(server: Server) -> None:
    """If-Modified-Since applies only without If-None-Match, and only if it is a date."""
    path = await server.image()
    async with server.client() as client:

        async def status(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return (await client.get(path, headers=named)).status_code

        assert await status(if_modified_since=MADE_HTTP) == 304
        assert await status(if_modified_since="Sun, 01 Mar 2026 10:20:29 GMT") == 200
        assert await status(if_modified_since=MADE_HTTP, if_none_match='"other"') == 200
        for nonsense in ("yesterday", "Sun, 01 Mar 2026 10:20:30", "Sun, 01 Mar 99999 10:20:30 GMT", ""):
            assert await status(if_modified_since=nonsense) == 200, nonsense


@pytest.mark.parametrize("at", [None, "long ago", "0001-01-01T00:00:00+14:00"])
async def test_bytes_of_unknown_age_have_no_date(server: Server, at: str | None) -> None:
    """With a missing or invalid time of the resizer there is no Last-Modified."""
    path = await server.image(at=at)
    async with server.client() as client:
        answer = await client.get(path, headers={"if-modified-since": MADE_HTTP})
    assert (answer.status_code, answer.content) == (200, DATA)
    assert "last-modified" not in answer.headers


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/xhtml+xml", "image/webp; x", "", "x"])
async def test_other_content_types_are_sent_as_a_download(server: Server, kind: str) -> None:
    """Objects of any but our image types are sent as attachments of type application/octet-stream."""
    path = await server.image(kind=kind, data=b"<script>alert(1)</script>")
    async with server.client(files=Linking(server.files), delivery="presigned") as client:
        answer = await client.get(path)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="cat.bin"'
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "sandbox" in answer.headers["content-security-policy"]


async def test_an_image_can_be_downloaded_under_its_name(server: Server) -> None:
    """With `download` the bytes are an attachment, named like the original with the delivered type's extension."""
    path = await server.image(filename='Käfer "auf" 100%.tiff')
    async with server.client() as client:
        answer = await client.get(path, params={"download": "1"})
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"K_fer _auf_ 100_.webp\"; filename*=UTF-8''K%C3%A4fer%20%22auf%22%20100%25.webp"
    )
    nameless = await server.image(filename=None)
    async with server.client() as client:
        answer = await client.get(nameless, params={"download": "true"})
    assert answer.headers["content-disposition"] == f'attachment; filename="{nameless.split("/")[-2]}.webp"'


@pytest.mark.parametrize("name", ["a\r\nSet-Cookie: x=1", 'a"; filename="b.html', "a\\", "\u202egpj.exe", "😀", "%41"])
def test_no_name_escapes_its_header(name: str) -> None:
    """Line breaks, quotes, backslashes and any alphabet stay inside the file name."""
    header = disposition(name, download=False)
    assert header.isascii()
    assert header.isprintable()
    plain, _, extended = header.removeprefix('inline; filename="').partition("\"; filename*=UTF-8''")
    assert not set(plain) & set('"\\%')
    assert extended
    assert not set(extended) & set('"\\;\r\n ')


async def test_a_url_with_the_content_version_is_immutable(server: Server) -> None:
    """With the current `v` the response is immutable, and so is its 304; with another it must be revalidated."""
    path = await server.image()
    async with server.client() as client:
        for query, kept in ((f"v={SHA256[:12]}", "immutable"), (f"v={SHA256[:11]}", "no-cache"), ("v=", "no-cache")):
            for headers in ({}, {"if-none-match": ETAG}, {"range": "bytes=0-1"}):
                answer = await client.get(f"{path}?{query}", headers=headers)
                assert kept in answer.headers["cache-control"], (query, headers)


async def test_presigned_delivery_redirects_to_a_link(server: Server) -> None:
    """With presigned delivery the response redirects to a short-lived link; a 304 is still sent by the gateway."""
    path = await server.image()
    async with server.client(files=Linking(server.files), delivery="presigned", link_expires_s=60) as client:
        answer = await client.get(path)
        assert answer.status_code == 307
        link = answer.headers["location"]
        assert link.startswith("https://files.example.org/images/")
        assert link.endswith("?for=60&name=cat.webp&inline=True")
        assert answer.headers["cache-control"] == "private, max-age=30"
        saved = await client.get(path, params={"download": "1"})
        assert saved.headers["location"].endswith("inline=False")
        assert (await client.get(path, headers={"if-none-match": ETAG})).status_code == 304
    async with server.client(delivery="presigned") as client:  # a folder has no links
        assert (await client.get(path)).content == DATA


async def test_missing_bytes_are_not_found(server: Server) -> None:
    """If the object is missing the response is 404, not a broken 200 or 206."""
    path = await server.image()
    await server.files.delete(image_key(path.split("/")[-2], 1, "medium"))
    async with server.client() as client:
        for headers in ({}, {"range": "bytes=5-"}):
            refused(await client.get(path, headers=headers), 404, "not-found")


async def test_unchanged_responses_are_304(server: Server) -> None:
    """A job's status and result and an image's description have ETags; a matching If-None-Match is 304."""
    image_id = (await server.image()).split("/")[-2]
    paths: Sequence[str] = (f"jobs/{image_id}.1", f"jobs/{image_id}.1/result", f"{image_id}/metadata")
    async with server.client() as client:
        for path in paths:
            answer = await client.get(f"{IMAGES}/{path}")
            assert answer.status_code == 200, answer.text
            again = await client.get(f"{IMAGES}/{path}", headers={"if-none-match": answer.headers["etag"]})
            assert (again.status_code, again.content) == (304, b""), path
        await merge(server.read_model, image_id, 1, {"filename": "dog.jpg", "error_code": "x", "state": "failed"})
        for path in paths:
            now = await client.get(f"{IMAGES}/{path}", headers={"if-none-match": answer.headers["etag"]})
            assert now.status_code == 200, path
    assert BASE in answer.json()["urls"]["medium"]
