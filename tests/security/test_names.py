"""Names that clients choose (files, buckets, ids, headers) never become a path or another response header."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.stored.receipts import Receipt
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore
from streams.process.http_server import serving
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.security.lines import connected
from tests.support.gateway_components import JPEG, UPLOAD, Encoder, Sink, StubReadiness, settings
from tests.support.permissions import PERMISSIONS

INJECTED = "X-Injected: yes"
NASTY_PATHS = (
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e%2f%2e%2e%2fetc%2fpasswd",
    "..%5c..%5cetc%5cpasswd",
    "..;%2f..;%2f",
    "%2e%2e",
    "%00",
    "a%00.jpg",
    f"%0d%0a{quote(INJECTED)}",
    f"%0a{quote(INJECTED)}%0a",
    "%c0%ae%c0%ae%2f",
    "%ff%fe",
    "%F0%9F%92%A9",
    "'%22%3E%3Cscript%3E",
    "%25%32%65%25%32%65%25%32%66",
    "a" * 3000,
    "-1",
    "%20",
)
NASTY_NAMES = (
    "../../../etc/passwd",
    "..\\..\\windows\\win.ini",
    "/etc/passwd",
    "C:\\autoexec.bat",
    "a\0.jpg",
    f"cat.jpg\x0b{INJECTED}",
    'cat";filename="../../x.jpg',
    "\u202egpj.exe",
    "..",
    "." * 400 + "/.jpg",
    "\u2028cat\u2029.jpg",
    "caf\u00e9 \U0001f4a9.jpg",
)


@dataclass
class Answer:
    """A response."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass
class Gateway:
    """The embedded gateway on a socket, with all data in one folder."""

    folder: Path
    port: int
    files: FileStore
    read_model: ReadModel

    async def ask(self, method: str, target: str, *lines: bytes, body: bytes = b"", host: bytes = b"x") -> Answer:
        """Send a request as it is; fail if a header of the answer came from what was sent."""
        line = await connected(self.port)
        head = [f"{method} {target} HTTP/1.1".encode(), b"Host: " + host, b"Connection: close", *lines]
        head += [b"Content-Length: %d" % len(body)] if body or method in ("POST", "PATCH") else []
        await line.send(b"\r\n".join([*head, b"", body]))
        raw = await line.rest()
        top, _, content = raw.partition(b"\r\n\r\n")
        first, *rest = top.decode("latin-1").split("\r\n")
        headers = {name.lower(): value for name, _, value in (found.partition(": ") for found in rest)}
        assert "x-injected" not in headers, raw
        assert not re.search(r"[\x00-\x08\x0a-\x1f\x7f]", "".join(headers.values())), raw
        status = int(first.split()[1])
        assert status != 500, f"{method} {target}: {raw!r}"
        assert b"root:" not in content
        return Answer(status, headers, content)

    async def upload(self, name: str, *, bucket: str = "default", metadata: str = "{}") -> Answer:
        """Upload an image by that name, not escaped but for quotes."""
        parts = [
            f'Content-Disposition: form-data; name="bucket"\r\n\r\n{bucket}',
            f'Content-Disposition: form-data; name="metadata"\r\n\r\n{metadata}',
            f'Content-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n',
        ]
        form = "".join(f"\r\n--x\r\n{part}" for part in parts).encode()[2:] + JPEG + b"\r\n--x--\r\n"
        return await self.ask("POST", UPLOAD, b"Content-Type: multipart/form-data; boundary=x", body=form)

    async def receipt(self, answer: Answer) -> Receipt:
        """Return the receipt of an upload."""
        assert answer.status == 202, answer.body
        job_id = json.loads(answer.body)["job_id"]
        return Receipt.model_validate_json(await self.files.get(f"jobs/{job_id}.json"))


@pytest.fixture
async def gateway(tmp_path: Path) -> AsyncIterator[Gateway]:
    folder = tmp_path / "gateway"
    folder.mkdir()
    async with (
        open_files(FilesSettings(directory=folder / "objects")) as files,
        open_read_model(QdrantSettings(path=folder / "qdrant")) as read_model,
    ):
        parts = QueryComponents(
            files=files, events=Sink(), read_model=read_model, encoder=Encoder(), readiness=StubReadiness()
        )
        async with serving(embedded_app(settings(spool_dir=folder), parts), "127.0.0.1", 0) as port:
            yield Gateway(folder, port, files, read_model)
    assert [path.name for path in tmp_path.iterdir()] == ["gateway"], "something was written outside"


async def test_a_file_name_never_becomes_a_path(gateway: Gateway) -> None:
    """The bytes are stored under their hash; the name is stored without folders and control characters."""
    for name in NASTY_NAMES:
        answer = await gateway.upload(name)
        if answer.status == 400:  # what it says is no form
            assert "\0" in name or "\x0b" in name or len(name) > 400, answer.body
            continue
        receipt = await gateway.receipt(answer)
        assert receipt.original is not None
        assert re.fullmatch(r"originals/default/[0-9a-f]{2}/[0-9a-f]{64}", receipt.original.key)
        kept = receipt.filename or ""
        assert not {"/", "\\"} & set(kept), name
        assert kept.isprintable(), name
        assert len(kept) <= 255, name


async def test_a_bucket_is_a_plain_word(gateway: Gateway) -> None:
    """A bucket that is not a plain word is refused, in a form and in JSON."""
    for bucket in ("../x", "a/b", "..", ".hidden", "a\0b", "a b", f"a\r\n{INJECTED}", "x" * 65, "ä", "a\n"):
        form = await gateway.upload("cat.jpg", bucket=bucket)
        assert form.status == 400, (bucket, form.body)
        body = json.dumps({"url": "http://x/", "bucket": bucket}).encode()
        fetch = await gateway.ask("POST", "/api/v1/images/fetch", b"Content-Type: application/json", body=body)
        assert fetch.status in (400, 422), (bucket, fetch.body)


async def test_invalid_ids_in_paths_are_refused(gateway: Gateway) -> None:
    """In every path of the API, an invalid id is refused with a problem: no file, no header, no 500."""
    patterns = [(method, path) for method, path in PERMISSIONS if "{" in path and method != "OPTIONS"]
    assert len(patterns) > 20
    for method, path in patterns:
        for nasty in NASTY_PATHS:
            answer = await gateway.ask(method, re.sub(r"\{[a-z0-9_]+\}", nasty, path))
            said = (method, path, nasty, answer.status, answer.body)
            assert 400 <= answer.status < 500 or answer.status == 503, said
            assert not answer.body or answer.headers["content-type"] == "application/problem+json", said


async def test_the_page_of_the_api_serves_no_other_files(gateway: Gateway) -> None:
    """No path gives access to files outside the folder of the page's scripts."""
    assert (await gateway.ask("GET", "/docs-assets/swagger-ui.css")).status == 200
    for nasty in NASTY_PATHS:
        assert (await gateway.ask("GET", f"/docs-assets/{nasty}")).status in (400, 404), nasty
        assert (await gateway.ask("GET", f"/docs-assets/../{nasty}")).status in (400, 404), nasty


async def test_an_invalid_correlation_id_is_replaced(gateway: Gateway) -> None:
    """A correlation id that is not a plain word is replaced, in the header and in the body."""
    for given in (
        b"a b",
        b"a\tb",
        "ü".encode(),
        b"x" * 129,
        b'"><script>',
        b"a,b",
        b"",
        b"{jndi:ldap://x}",
    ):
        answer = await gateway.ask("GET", "/nowhere", b"X-Correlation-ID: " + given)
        told = answer.headers["x-correlation-id"]
        assert re.fullmatch(r"[0-9a-f-]{36}", told)
        assert json.loads(answer.body)["correlation_id"] == told
        plain = await gateway.ask("GET", "/nowhere", b"X-Correlation-ID: Order-4711.b_2")
        assert plain.headers["x-correlation-id"] == "Order-4711.b_2"


async def test_a_line_break_in_a_header_injects_nothing(gateway: Gateway) -> None:
    """A line break inside a header ends the request with 400, unless it starts a header, which is ignored."""
    for sign in (b"\r", b"\n", b"\0", b"\r\n", b"\r\n ", b"\n\t"):
        answer = await gateway.ask("GET", "/health/live", b"X-Correlation-ID: a" + sign + INJECTED.encode())
        assert answer.status == (200 if sign == b"\r\n" else 400), sign


async def test_an_invalid_host_injects_nothing(gateway: Gateway) -> None:
    """An invalid Host causes no 500 and no injected header."""
    for host in (b"[", b"x:99999999", b"a b", b"evil.example\\@x", b"", b"x/..//y", b"%0d%0a", b"[::1"):
        for target in ("/", "/api/v1/images", "/openapi.json"):
            answer = await gateway.ask("GET", target, host=host)
            assert answer.status in (200, 400), answer.body


async def test_metadata_is_returned_in_json_only(gateway: Gateway) -> None:
    """Line breaks and markup in a client's metadata are returned unchanged, inside JSON, and never in a header."""
    metadata = {"a": f"x\r\n{INJECTED}", "<b>": "</script><script>alert(1)</script>", "\x00": "\x1b[31m"}
    receipt = await gateway.receipt(await gateway.upload("cat.jpg", metadata=json.dumps(metadata)))
    assert receipt.context == metadata
    answer = await gateway.ask("GET", f"/api/v1/images/jobs/{receipt.job_id}")
    assert (answer.status, answer.headers["x-content-type-options"]) == (200, "nosniff")
    assert answer.headers["content-type"] == "application/json"


async def test_an_uncleaned_file_name_is_quoted_in_headers(gateway: Gateway) -> None:
    """Content-Disposition of a download is one header with any file name, also one that no gateway has cleaned."""
    for name in (*NASTY_NAMES, f"cat\r\n{INJECTED}", f"\n{INJECTED}\n", "<img src=x>.html", "a" * 5000):
        receipt = await gateway.receipt(await gateway.upload("cat.jpg"))
        ref = await gateway.files.put(image_key(receipt.image_id, 1, "medium.webp"), b"webp", content_type="image/webp")
        size = {"name": "medium", "object": ref, "width": 1, "height": 1, "aspect_ratio": 1, "format": "webp"}
        known = {"image_id": receipt.image_id, "owner": receipt.owner, "generation": 1, "state": "completed"}
        await gateway.read_model.begin(ImageRecord.model_validate({**known, "renditions": (size,), "filename": name}))
        answer = await gateway.ask("GET", f"/api/v1/images/{receipt.image_id}/direct?size=medium&download=true")
        assert answer.status == 200, answer.body
        told = answer.headers["content-disposition"]
        assert told.isascii()
        assert "/" not in told.replace("''", "")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["content-type"] == "image/webp"


async def test_filters_are_encoded_in_the_link_of_a_listing(gateway: Gateway) -> None:
    """Filters and cursors are encoded in the Link header of a listing."""
    nasty = f"cat\r\n{INJECTED}"
    for number in range(3):
        receipt = await gateway.receipt(await gateway.upload(f"{number}.jpg"))
        known = {"image_id": receipt.image_id, "owner": receipt.owner, "generation": 1, "state": "completed"}
        await gateway.read_model.begin(ImageRecord.model_validate({**known, "labels": (nasty,)}))
    first = await gateway.ask("GET", f"/api/v1/images?page_size=1&label={quote(nasty)}")
    assert first.status == 200, first.body
    assert len(json.loads(first.body)["items"]) == 1
    assert "%0D%0A" in first.headers["link"]
    for name in ("cursor", "tag", "category", "bucket", "label", "state", "since", "unknown"):
        query = f"{name}=%00{quote(nasty)}%3E%3Cscript%3E"
        for target in (f"/api/v1/images?{query}", f"/api/v1/search?q=x&{query}", f"/api/v1/images/batch?{query}"):
            assert (await gateway.ask("GET", target)).status in (200, 400, 404, 422)


async def test_upload_metadata_injects_no_header(gateway: Gateway) -> None:
    """A resumable upload's name with line breaks never becomes a header of a later response."""
    name = base64.b64encode(f"../cat\r\n{INJECTED}".encode())
    tus = (b"Tus-Resumable: 1.0.0", b"Upload-Length: 300")
    made = await gateway.ask("POST", "/api/v1/uploads", *tus, b"Upload-Metadata: filename " + name)
    assert made.status in (201, 400), made.body
    if made.status == 201:
        path = "/" + made.headers["location"].split("/", 3)[3]
        assert (await gateway.ask("HEAD", path, b"Tus-Resumable: 1.0.0")).status in (200, 204)
    for broken in (b"filename not-base64!", b"a" * 20_000, "nä me".encode(), b"filename " + name + b"," * 5000):
        answer = await gateway.ask("POST", "/api/v1/uploads", *tus, b"Upload-Metadata: " + broken)
        assert answer.status in (201, 400, 413, 422, 431), answer.body


async def test_an_invalid_traceparent_is_replaced(gateway: Gateway) -> None:
    """A request with an invalid traceparent is served."""
    for given in (b"00-zz-11-01", b"\xff\xfe", b"00-" + b"0" * 32 + b"-" + b"1" * 16 + b"-01", b"x" * 9000):
        assert (await gateway.ask("GET", "/health/live", b"traceparent: " + given)).status == 200
