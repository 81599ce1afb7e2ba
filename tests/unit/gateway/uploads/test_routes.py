"""The ingest gateway: accepted and rejected uploads, and none accepted halfway."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.uploads.lane_selection import Lanes
from schemas.events.envelope import Event
from schemas.events.intake import FetchRequested, ImageUploaded
from schemas.http.submissions import Submitted
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import Lane, Owner, split_job_id
from streams import topics
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.keys import receipt_key
from streams.object_store.tombstones import Tombstones
from streams.settings import FilesSettings
from streams.topics import Topic
from tests.support import documents
from tests.support.gateway_components import (
    BASE,
    JPEG,
    UPLOAD,
    FaultyFiles,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
)

FETCH = "/api/v1/images/fetch"
DEEP = '{"a":' * 3000 + "1" + "}" * 3000
LONG = json.dumps({"a": "x" * 17_000})


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    async with open_files(FilesSettings(directory=tmp_path)) as found:
        yield FaultyFiles(found)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
async def client(files: FaultyFiles, sink: Sink) -> AsyncIterator[httpx.AsyncClient]:
    app = ingest_app(
        settings(max_upload_bytes=200_000), IngestComponents(files=files, events=sink, readiness=StubReadiness())
    )
    async with client_of(app) as found:
        yield found


async def test_an_upload_is_stored_and_published_before_202(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """A 202 means: bytes stored under their hash, receipt written, event confirmed."""
    answer = await client.post(
        UPLOAD, files={"file": ("cat.jpg", JPEG)}, data={"bucket": "pets", "metadata": '{"album": null, "n": [1]}'}
    )
    assert answer.status_code == 202, answer.text
    body = Submitted.model_validate_json(answer.content)
    assert split_job_id(body.job_id) == (body.image_id, 1)
    assert answer.headers["location"] == body.status_url == f"{BASE}/api/v1/images/jobs/{body.job_id}"
    digest = hashlib.sha256(JPEG).hexdigest()
    assert (await files.objects())[f"originals/default/{digest[:2]}/{digest}"] == (JPEG, "image/jpeg")
    receipt = Receipt.model_validate_json((await files.objects())[receipt_key(body.job_id)][0])
    assert (receipt.kind, receipt.bucket, receipt.filename) == (ReceiptKind.UPLOAD, "pets", "cat.jpg")
    assert receipt.context == {"album": None, "n": [1]}
    ((topic, event),) = sink.sent
    assert topic is topics.UPLOADED
    assert isinstance(event, ImageUploaded)
    assert event.original == receipt.original
    assert (event.image_id, event.generation, event.context) == (body.image_id, 1, receipt.context)
    assert ImageUploaded.model_validate_json(event.body()) == event


async def test_the_event_is_sent_after_everything_is_stored(files: FaultyFiles) -> None:
    """When the event is sent, the original, its reference and the receipt are stored."""
    seen: list[set[str]] = []

    class Watching(Sink):
        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            seen.append({key.split("/")[0] for key in await files.objects()})

    app = ingest_app(settings(), IngestComponents(files=files, events=Watching(), readiness=StubReadiness()))
    async with client_of(app) as client:
        assert (await client.post(UPLOAD, files={"file": ("a", JPEG)})).status_code == 202
    assert seen == [{"originals", "claims", "jobs"}]


async def test_the_format_is_detected_by_the_bytes(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, images_dir: Path
) -> None:
    """JPEG, PNG, BMP, TIFF, WebP, GIF, AVIF, HEIC and PDF are detected by signature, under any name and type."""
    wanted = {
        "formats/cat.jpg": "image/jpeg",
        "formats/p3.png": "image/png",
        "formats/hopper_lzw.tif": "image/tiff",
        "formats/5_webp_a.webp": "image/webp",
        "formats/rotating-squares.gif": "image/gif",
        "formats/hopper.avif": "image/avif",
        "exif/samplefilehub.heif": "image/heic",
    }
    for name, kind in wanted.items():
        data = (images_dir / name).read_bytes()
        app = ingest_app(settings(), IngestComponents(files=files, events=sink, readiness=StubReadiness()))
        async with client_of(app) as roomy:
            answer = await roomy.post(UPLOAD, files={"file": ("x.txt", data, "text/plain")})
        assert answer.status_code == 202, (name, answer.text)
        event = sink.sent[-1][1]
        assert isinstance(event, ImageUploaded)
        assert event.original.content_type == kind
    bmp = b"BM" + (54).to_bytes(4, "little") + bytes(4) + (54).to_bytes(4, "little") + (40).to_bytes(4, "little")
    assert (await client.post(UPLOAD, files={"file": ("x", bmp + bytes(60))})).status_code == 202
    pdf = {"file": ("x.jpg", documents.written_pdf(["Invoice"]), "image/jpeg")}
    assert (await client.post(UPLOAD, files=pdf)).status_code == 202
    event = sink.sent[-1][1]
    assert isinstance(event, ImageUploaded)
    assert event.original.content_type == "application/pdf"


async def test_other_formats_are_rejected_with_415(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, images_dir: Path
) -> None:
    """Text, SVG, JPEG 2000 and other bytes named as a JPEG are rejected, and store nothing."""
    for data in (
        b"BMW is not a bitmap, whatever its first two letters say, is it?",
        b"x",
        (images_dir / "formats" / "check.svg").read_bytes(),
        (images_dir / "formats" / "relax.jp2").read_bytes()[:5000],
        b"\x00\x00\x00\x18ftypmp42" + b"isom" * 40,
    ):
        answer = await client.post(UPLOAD, files={"file": ("cat.jpg", data, "image/jpeg")})
        refused(answer, 415, "unsupported-format")
    assert not await files.objects()
    assert not sink.sent


@pytest.mark.parametrize(
    ("form", "status", "code"),
    [
        ({"files": {"file": ("a.jpg", b"")}}, 400, "empty-file"),
        ({"files": {"bucket": (None, "b")}}, 400, "missing-file"),
        ({"files": {"file": (None, "not a file")}}, 400, "missing-file"),
        ({"files": {"file": ("a", JPEG)}, "data": {"metadata": "[1]"}}, 400, "invalid-metadata"),
        ({"files": {"file": ("a", JPEG)}, "data": {"metadata": "{"}}, 400, "invalid-metadata"),
        ({"files": {"file": ("a", JPEG)}, "data": {"metadata": '{"a": NaN}'}}, 400, "invalid-metadata"),
        ({"files": {"file": ("a", JPEG)}, "data": {"metadata": '{"a": 1e999}'}}, 400, "invalid-metadata"),
        ({"files": {"file": ("a", JPEG)}, "data": {"metadata": '{"a": "\\ud800"}'}}, 400, "invalid-metadata"),
        ({"files": {"file": ("a", JPEG)}, "data": {"metadata": DEEP}}, 400, "invalid-metadata"),
        ({"files": {"file": ("a", JPEG)}, "data": {"metadata": LONG}}, 400, "invalid-metadata"),
        ({"files": {"file": ("a", JPEG)}, "data": {"bucket": "../x"}}, 400, "invalid-bucket"),
        ({"files": {"file": ("a", JPEG)}, "data": {"bucket": "x" * 65}}, 400, "invalid-bucket"),
        ({"files": {"file": ("a", JPEG)}, "data": {"colour": "red"}}, 400, "unknown-field"),
        ({"files": [("file", ("a", JPEG)), ("file", ("b", JPEG))]}, 400, "bad-request"),
        ({"content": b"hello", "headers": {"content-type": "text/plain"}}, 415, "unsupported-media-type"),
        ({"content": b"hello", "headers": {"content-type": "multipart/form-data"}}, 400, "bad-request"),
        ({"content": b"hello", "headers": {"content-type": "multipart/form-data; boundary=x"}}, 400, "bad-request"),
        (
            {
                "content": b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + JPEG,
                "headers": {"content-type": "multipart/form-data; boundary=x"},
            },
            400,
            "bad-request",
        ),
    ],
)  # fmt: skip
async def test_an_invalid_form_is_rejected(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, form: dict[str, object], status: int, code: str
) -> None:
    """Each kind of invalid form has its own code, and leaves no object, receipt or event."""
    refused(await client.post(UPLOAD, **form), status, code)  # type: ignore[arg-type]
    assert not await files.objects()
    assert not sink.sent


async def test_an_unknown_field_is_named(client: httpx.AsyncClient) -> None:
    """The problem of an unknown field names it and the known fields."""
    answer = await client.post(UPLOAD, files={"file": ("a", JPEG)}, data={"colour": "red"})
    problem = refused(answer, 400, "unknown-field")
    assert [item.field for item in problem.errors] == ["colour"]
    assert "bucket, category, file, lane, metadata, on_duplicate, profile, sha256, tags" in problem.detail


@pytest.mark.parametrize(
    ("disposition", "filename"),
    [
        ("filename*=UTF-8''caf%C3%A9.jpg", "café.jpg"),
        ("filename=\"cafe.jpg\"; filename*=utf-8'fr'caf%c3%a9.jpg", "café.jpg"),
        ("filename*=ISO-8859-1''caf%E9.jpg", "café.jpg"),
        ("FILENAME* = \"UTF-8''a%20b.jpg\"", "a b.jpg"),
        ("filename*=UTF-8''..%2F..%2Fetc%2Fcat.jpg", "cat.jpg"),
        ('filename*=cat.jpg; filename="plain.jpg"', "plain.jpg"),
        ("filename*=cat.jpg", None),
        ("filename*=zip''%FF", None),
        ("filename=\"a; filename*=UTF-8''b.jpg\"", "a; filename*=UTF-8''b.jpg"),
    ],
)
async def test_a_part_with_an_extended_file_name_is_a_file(
    client: httpx.AsyncClient, sink: Sink, disposition: str, filename: str | None
) -> None:
    """`filename*` (RFC 8187) makes a part a file, and gives its name if it can be decoded."""
    opening = f'--x\r\nContent-Disposition: form-data; name="file"; {disposition}\r\n\r\n'.encode()
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = await client.post(UPLOAD, content=opening + JPEG + b"\r\n--x--\r\n", headers=headers)
    assert answer.status_code == 202, answer.text
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert event.filename == filename


@pytest.mark.parametrize("kind", ["image/jpeg", "image/x-unknown; a=b", "application/octet-stream"])
async def test_a_file_may_be_the_body(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink, kind: str) -> None:
    """The raw bytes are accepted as a body, with all fields in the query."""
    fields = {
        "filename": "x/café.jpg", "bucket": "pets", "metadata": '{"n": 1}', "tags": "cat,sofa", "category": "animals",
        "lane": "bulk", "sha256": hashlib.sha256(JPEG).hexdigest().upper(),
    }  # fmt: skip
    answer = await client.post(UPLOAD, content=JPEG, params=fields, headers={"content-type": kind})
    assert answer.status_code == 202, answer.text
    assert answer.json()["lane"] == "bulk"
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert (event.filename, event.bucket, event.context) == ("café.jpg", "pets", {"n": 1})
    assert (event.tags, event.category) == (("cat", "sofa"), "animals")
    assert (await files.objects())[event.original.key] == (JPEG, "image/jpeg")


@pytest.mark.parametrize(
    ("content", "query", "headers", "status", "code"),
    [
        (b"", "", {}, 400, "empty-file"),
        (b"not an image", "", {}, 415, "unsupported-format"),
        (JPEG + bytes(200_000), "", {}, 413, "file-too-large"),
        (JPEG, "colour=red", {}, 400, "unknown-field"),
        (JPEG, "file=a.jpg", {}, 400, "unknown-field"),
        (JPEG, "tags=a&tags=b", {}, 400, "bad-request"),
        (JPEG, "bucket=../x", {}, 400, "invalid-bucket"),
        (JPEG, "metadata=[]", {}, 400, "invalid-metadata"),
        (JPEG, "lane=fast", {}, 422, "invalid-field"),
        (JPEG, "sha256=" + "0" * 64, {}, 400, "digest-mismatch"),
        (JPEG, "sha256=x", {}, 400, "invalid-digest"),
        (JPEG, "", {"content-digest": f"sha-256=:{'A' * 43}=:"}, 400, "digest-mismatch"),
        (JPEG, "", {"idempotency-key": '"' + "k" * 300 + '"'}, 400, "invalid-idempotency-key"),
        (JPEG, "", {"content-type": "text/plain"}, 415, "unsupported-media-type"),
        (JPEG, "", {"content-type": ""}, 415, "unsupported-media-type"),
    ],
)
async def test_an_invalid_body_is_rejected(
    client: httpx.AsyncClient,
    files: FaultyFiles,
    sink: Sink,
    content: bytes,
    query: str,
    headers: dict[str, str],
    status: int,
    code: str,
) -> None:
    """A raw body has the limits and checks of a form, and stores nothing when it is rejected."""
    sent = {"content-type": "image/jpeg", **headers}
    refused(await client.post(f"{UPLOAD}?{query}", content=content, headers=sent), status, code)
    assert not await files.objects()
    assert not sink.sent


async def test_a_raw_body_is_read_up_to_the_limit(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """A raw body of unknown length is read up to the limit and no further."""
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        yield JPEG
        for _ in range(10_000):
            taken += 10_000
            yield bytes(10_000)

    refused(await client.post(UPLOAD, content=body(), headers={"content-type": "image/png"}), 413, "file-too-large")
    assert taken <= 220_000
    assert not await files.objects()


async def test_a_raw_body_is_accepted_once_per_key(client: httpx.AsyncClient, sink: Sink) -> None:
    """With an Idempotency-Key the first answer is returned again, also to a form of the same file and fields."""
    headers = {"idempotency-key": '"one"', "content-type": "image/jpeg"}
    first = await client.post(f"{UPLOAD}?filename=a.jpg&bucket=pets", content=JPEG, headers=headers)
    again = await client.post(f"{UPLOAD}?bucket=pets&filename=a.jpg", content=JPEG, headers=headers)
    form = await client.post(
        UPLOAD, files={"file": ("a.jpg", JPEG)}, data={"bucket": "pets"}, headers={"idempotency-key": '"one"'}
    )
    assert first.status_code == again.status_code == form.status_code == 202
    assert first.json()["job_id"] == again.json()["job_id"] == form.json()["job_id"]
    assert len(sink.sent) == 1
    other = await client.post(f"{UPLOAD}?filename=b.jpg", content=JPEG, headers=headers)
    refused(other, 422, "idempotency-key-reused")


async def test_fields_of_a_form_may_be_in_the_query(client: httpx.AsyncClient, sink: Sink) -> None:
    """Fields of a form take precedence over those in the query, as in a batch."""
    answer = await client.post(f"{UPLOAD}?bucket=a&category=animals", files={"file": ("a", JPEG)}, data={"bucket": "b"})
    assert answer.status_code == 202, answer.text
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert (event.bucket, event.category) == ("b", "animals")


async def test_a_content_length_above_the_limit_is_rejected_unread(client: httpx.AsyncClient) -> None:
    """A Content-Length above the limit is rejected with 413 before the body is read."""

    async def body() -> AsyncIterator[bytes]:
        pytest.fail("the body was read")
        yield b""

    headers = {"content-type": "multipart/form-data; boundary=x", "content-length": "900000000"}
    problem = refused(await client.post(UPLOAD, content=body(), headers=headers), 413, "file-too-large")
    assert "200000" in problem.detail


async def test_a_body_without_a_length_is_read_up_to_the_limit(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """A body of unknown length is read up to the limit and no further."""
    taken = 0

    async def body() -> AsyncIterator[bytes]:
        nonlocal taken
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + JPEG
        for _ in range(10_000):
            taken += 10_000
            yield b"\x00" * 10_000

    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(await client.post(UPLOAD, content=body(), headers=headers), 413, "file-too-large")
    assert taken <= 220_000
    assert not await files.objects()
    assert not sink.sent


async def test_bytes_after_the_form_count(client: httpx.AsyncClient) -> None:
    """Bytes after the last boundary count: a complete form with an endless tail is rejected."""

    async def body() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + JPEG + b"\r\n--x--\r\n"
        for _ in range(40):
            yield b" " * 10_000
        pytest.fail("the tail was taken")

    headers = {"content-type": "multipart/form-data; boundary=x"}
    refused(await client.post(UPLOAD, content=body(), headers=headers), 413, "file-too-large")


async def test_without_disk_space_an_upload_is_503(files: FaultyFiles, sink: Sink, tmp_path: Path) -> None:
    """If uploads cannot be spooled the response is 503, and nothing is accepted."""
    app = ingest_app(
        settings(spool_dir=tmp_path / "nowhere"), IngestComponents(files=files, events=sink, readiness=StubReadiness())
    )
    async with client_of(app) as client:
        refused(await client.post(UPLOAD, files={"file": ("a", JPEG)}), 503, "dependency-unavailable")
    assert not sink.sent


async def test_spooled_files_are_removed(files: FaultyFiles, sink: Sink, tmp_path: Path) -> None:
    """The spool folder is empty after every outcome of an upload."""
    spool = tmp_path / "spool"
    spool.mkdir()
    app = ingest_app(settings(spool_dir=spool), IngestComponents(files=files, events=sink, readiness=StubReadiness()))
    async with client_of(app) as client:
        assert (await client.post(UPLOAD, files={"file": ("a", JPEG)})).status_code == 202
        refused(await client.post(UPLOAD, files={"file": ("a", b"x" * 100)}), 415, "unsupported-format")
        sink.unavailable = True
        refused(await client.post(UPLOAD, files={"file": ("a", JPEG)}), 503, "dependency-unavailable")
    assert not list(spool.iterdir())


async def test_a_stalled_upload_ends_with_408(files: FaultyFiles, sink: Sink) -> None:
    """An upload without data for longer than allowed ends with 408."""

    async def body() -> AsyncIterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + JPEG
        await asyncio.Event().wait()

    app = ingest_app(
        settings(upload_idle_s=0.05), IngestComponents(files=files, events=sink, readiness=StubReadiness())
    )
    async with client_of(app) as client:
        headers = {"content-type": "multipart/form-data; boundary=x"}
        refused(await client.post(UPLOAD, content=body(), headers=headers), 408, "upload-too-slow")
    assert not await files.objects()


async def test_a_file_of_exactly_the_limit_is_accepted(client: httpx.AsyncClient) -> None:
    """A file of the limit is accepted; one byte more is rejected."""
    whole = JPEG + bytes(200_000 - len(JPEG))
    assert (await client.post(UPLOAD, files={"file": ("a", whole)})).status_code == 202
    refused(await client.post(UPLOAD, files={"file": ("a", whole + b"\x00")}), 413, "file-too-large")


async def test_without_kafka_an_upload_is_503_and_rolled_back(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """Without Kafka's confirmation there is no job: 503 with Retry-After, and everything is rolled back."""
    sink.unavailable = True
    for answer in (
        await client.post(UPLOAD, files={"file": ("a", JPEG)}),
        await client.post(FETCH, json={"url": "https://example.org/a.jpg"}),
    ):
        problem = refused(answer, 503, "dependency-unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert "Kafka" in problem.detail
    assert not await files.objects()
    sink.unavailable = False
    assert (await client.post(UPLOAD, files={"file": ("a", JPEG)})).status_code == 202


async def test_a_failed_upload_keeps_shared_bytes(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """A failed second upload of the same bytes removes nothing of the accepted first one."""
    first = (await client.post(UPLOAD, files={"file": ("a", JPEG)})).json()
    before = await files.objects()
    sink.unavailable = True
    refused(await client.post(UPLOAD, files={"file": ("b", JPEG)}), 503, "dependency-unavailable")
    assert await files.objects() == before
    assert receipt_key(first["job_id"]) in before


async def test_a_failed_upload_keeps_bytes_it_stored_for_another(files: FaultyFiles) -> None:
    """Of two concurrent uploads of the same bytes the one that stored them fails: the accepted one keeps them."""
    brought, accepted = asyncio.Event(), asyncio.Event()

    class Split(Sink):
        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            if not brought.is_set():
                brought.set()
                await accepted.wait()
                raise DependencyUnavailable("the first is not confirmed")
            accepted.set()

    app = ingest_app(settings(), IngestComponents(files=files, events=Split(), readiness=StubReadiness()))
    async with client_of(app) as client:

        async def second() -> httpx.Response:
            await brought.wait()
            return await client.post(UPLOAD, files={"file": ("b", JPEG)})

        failed, taken = await asyncio.gather(client.post(UPLOAD, files={"file": ("a", JPEG)}), second())
    refused(failed, 503, "dependency-unavailable")
    assert taken.status_code == 202
    receipt = Receipt.model_validate_json(await files.get(receipt_key(taken.json()["job_id"])))
    assert receipt.original is not None
    assert await files.get(receipt.original.key) == JPEG
    assert len(await files.receipts()) == 1


async def test_an_original_removed_during_acceptance_is_restored(files: FaultyFiles) -> None:
    """An original removed while its event is sent exists again before the 202."""

    class Removing(Sink):
        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            assert isinstance(event, ImageUploaded)
            await files.delete(event.original.key)

    app = ingest_app(settings(), IngestComponents(files=files, events=Removing(), readiness=StubReadiness()))
    async with client_of(app) as client:
        assert (await client.post(UPLOAD, files={"file": ("a", JPEG)})).status_code == 202
    assert JPEG in [data for data, _ in (await files.objects()).values()]


async def only_its_deletion(files: FaultyFiles) -> None:
    """Assert that only a deletion is left of an upload."""
    (image_id,) = [one async for one in Tombstones(files).unfinished()]
    assert await files.receipts() == [receipt_key(f"{image_id}.2")]
    receipt = Receipt.model_validate_json(await files.get(receipt_key(f"{image_id}.2")))
    assert receipt.kind is ReceiptKind.DELETE
    erasure = await Tombstones(files).get(image_id)
    assert erasure is not None
    assert erasure.covers(receipt.owner, 1)
    assert not [key for key in await files.objects() if key.startswith(("originals/", "claims/"))]


async def test_a_missing_confirmation_is_503_in_bounded_time(files: FaultyFiles) -> None:
    """The wait for a confirmation is bounded; the image gets a tombstone in case the event was written."""

    class Silent(Sink):
        async def send(self, *args: object, **named: object) -> None:
            await asyncio.Event().wait()

    app = ingest_app(
        settings(delivery_timeout_s=0.05), IngestComponents(files=files, events=Silent(), readiness=StubReadiness())
    )
    async with client_of(app) as client:
        refused(await client.post(UPLOAD, files={"file": ("a", JPEG)}), 503, "dependency-unavailable")
    await only_its_deletion(files)


async def test_without_the_store_an_upload_is_503(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """Without the object store nothing is accepted or published, and no internal address is exposed."""
    files.unavailable = True
    answer = await client.post(UPLOAD, files={"file": ("a", JPEG)})
    refused(answer, 503, "dependency-unavailable")
    assert answer.headers["retry-after"]
    assert "10.0.0.7" not in answer.text
    assert not sink.sent


async def test_equal_bytes_are_stored_once_for_two_images(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """Two uploads of the same bytes share one original; each is its own image."""
    ids = {(await client.post(UPLOAD, files={"file": ("a", JPEG)})).json()["image_id"] for _ in range(2)}
    assert len(ids) == 2
    assert len([key for key in await files.objects() if key.startswith("originals/")]) == 1


async def test_a_fetch_is_published_by_its_host(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """A URL is accepted as an event keyed by its host, so that one fetcher owns a source."""
    asked = {"url": "https://Example.org:8443/a.jpg", "bucket": "b", "metadata": {"k": "v"}}
    answer = await client.post(FETCH, json=asked)
    assert answer.status_code == 202, answer.text
    ((topic, event),) = sink.sent
    assert topic is topics.FETCH_REQUESTED
    assert isinstance(event, FetchRequested)
    assert (event.url, event.bucket, event.context, event.key()) == (asked["url"], "b", {"k": "v"}, b"example.org")
    receipt = Receipt.model_validate_json((await files.objects())[receipt_key(event.job_id)][0])
    assert (receipt.kind, receipt.url) == (ReceiptKind.FETCH, asked["url"])


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://a/b", "http://", "/a.jpg", "http://[::1", "http://a b/c", "http://a:99999/"]
)
async def test_an_invalid_url_is_rejected(client: httpx.AsyncClient, sink: Sink, url: str) -> None:
    """Only absolute http and https URLs are accepted."""
    refused(await client.post(FETCH, json={"url": url}), 400, "invalid-url")
    assert not sink.sent


async def test_an_invalid_fetch_names_every_field(client: httpx.AsyncClient) -> None:
    """An invalid JSON body is rejected with 422, naming each field."""
    problem = refused(await client.post(FETCH, json={"bucket": "/", "colour": 1}), 422, "invalid-field")
    assert {item.field for item in problem.errors} == {"url", "bucket", "colour"}
    refused(await client.post(FETCH, content=b"{", headers={"content-type": "application/json"}), 422, "invalid-field")
    deep = {"url": "https://a.example/", "metadata": {"a": "x" * 20_000}}
    refused(await client.post(FETCH, json=deep), 400, "invalid-metadata")


async def test_a_json_body_is_limited(client: httpx.AsyncClient) -> None:
    """A JSON body above the limit is rejected, and one of another type is not read."""

    async def body() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000
        pytest.fail("the body was taken whole")

    headers = {"content-type": "application/json"}
    refused(await client.post(FETCH, content=body(), headers=headers), 413, "file-too-large")
    refused(await client.post(FETCH, data={"url": "https://a.example/"}), 415, "unsupported-media-type")


async def test_unknown_paths_and_methods_are_problems_too(client: httpx.AsyncClient) -> None:
    """The framework's own 404 and 405 are problems like all others."""
    refused(await client.get("/nothing"), 404, "not-found")
    answer = await client.get(UPLOAD)
    refused(answer, 405, "method-not-allowed")
    assert answer.headers["allow"] == "OPTIONS, POST"


async def test_a_bug_is_a_500_without_details(files: FaultyFiles) -> None:
    """An unexpected error is answered with its correlation id only."""

    class Broken(Sink):
        async def send(self, *args: object, **named: object) -> None:
            raise RuntimeError("secret-host-name")

    app = ingest_app(settings(), IngestComponents(files=files, events=Broken(), readiness=StubReadiness()))
    async with client_of(app) as client:
        answer = await client.post(UPLOAD, files={"file": ("a", JPEG)}, headers={"x-correlation-id": "abc-1"})
    problem = refused(answer, 500, "internal-error")
    assert "secret" not in answer.text
    assert answer.headers["x-correlation-id"] == problem.correlation_id == "abc-1"
    await only_its_deletion(files)


async def test_correlation_id_and_trace_are_propagated(client: httpx.AsyncClient, sink: Sink) -> None:
    """A valid correlation id is returned, an invalid one replaced, and the trace reaches the event."""
    trace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    headers = {"x-correlation-id": "order-77", "traceparent": trace}
    answer = await client.post(UPLOAD, files={"file": ("a", JPEG)}, headers=headers)
    assert answer.headers["x-correlation-id"] == "order-77"
    assert (sink.traceparents[0] or "").startswith(trace[:35])
    answer = await client.get("/health/live", headers={"x-correlation-id": "a b<script>"})
    assert answer.headers["x-correlation-id"] != "a b<script>"


async def test_readiness_requires_every_part(files: FaultyFiles, sink: Sink) -> None:
    """Readiness is 503 if one part fails; liveness and the health page are still 200."""
    readiness = StubReadiness({"kafka": (True, "answers"), "ocr": (False, "no worker")})
    app = ingest_app(settings(), IngestComponents(files=files, events=sink, readiness=readiness))
    async with client_of(app) as client:
        answer = await client.get("/health/ready")
        assert answer.status_code == 503
        ocr = answer.json()["parts"]["ocr"]
        assert (ocr["ok"], ocr["detail"]) == (False, "no worker")
        assert (await client.get("/health/live")).status_code == 200
        assert (await client.get("/api/v1/health")).json()["status"] == "unready"
        readiness.parts = {"kafka": (True, "answers")}
        assert (await client.get("/health/ready")).status_code == 200


async def test_requests_are_counted_by_route_and_status(client: httpx.AsyncClient) -> None:
    """The metrics count requests by the route's template, never by a path with ids."""
    await client.post(UPLOAD, files={"file": ("a", JPEG)})
    await client.get("/no/such/path/named-by-nobody")
    text = (await client.get("/metrics")).text
    assert 'darkroom_http_requests_total{app="ingest",method="POST",route="/api/v1/images/upload",status="202"}' in text
    assert 'route="unmatched",status="404"' in text
    assert "named-by-nobody" not in text


async def test_the_openapi_document_describes_uploads(client: httpx.AsyncClient) -> None:
    """The OpenAPI document describes the upload form and its problems."""
    document = (await client.get("/openapi.json")).json()
    upload = document["paths"][UPLOAD]["post"]
    assert "file" in upload["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert list(upload["responses"]["413"]["content"]) == ["application/problem+json"]


async def test_an_upload_or_fetch_can_use_the_bulk_lane(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """A bulk upload is stored and confirmed like any other; its event is sent to the bulk lane."""
    upload = await client.post(UPLOAD, files={"file": ("a.jpg", JPEG)}, data={"lane": "bulk"})
    fetch = await client.post(FETCH, json={"url": "https://example.org/a.jpg", "lane": "bulk"})
    assert (upload.status_code, fetch.status_code) == (202, 202), (upload.text, fetch.text)
    for answer in (upload, fetch):
        body = Submitted.model_validate_json(answer.content)
        assert body.lane is Lane.BULK
        assert Receipt.model_validate_json(await files.get(receipt_key(body.job_id))).lane is Lane.BULK
    assert [topic for topic, _ in sink.sent] == [topics.UPLOADED, topics.FETCH_REQUESTED]
    assert sink.bulk == [event for _, event in sink.sent]


async def test_the_default_lane_is_interactive(client: httpx.AsyncClient, sink: Sink) -> None:
    """Without a lane, and with an empty one, an upload is interactive."""
    for data in ({}, {"lane": ""}, {"lane": "interactive"}):
        answer = await client.post(UPLOAD, files={"file": ("a.jpg", JPEG)}, data=data)
        assert Submitted.model_validate_json(answer.content).lane is Lane.INTERACTIVE
    assert not sink.bulk


async def test_an_unknown_lane_is_rejected(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """An unknown lane is rejected by name, for uploads and fetches, and nothing is stored."""
    upload = await client.post(UPLOAD, files={"file": ("a.jpg", JPEG)}, data={"lane": "express"})
    fetch = await client.post(FETCH, json={"url": "https://example.org/a.jpg", "lane": "express"})
    for answer, status in ((upload, 422), (fetch, 422)):
        assert [item.field for item in refused(answer, status, "invalid-field").errors] == ["lane"]
    assert not sink.sent
    assert not await files.objects()


async def test_images_above_the_interactive_rate_use_the_bulk_lane(files: FaultyFiles, sink: Sink) -> None:
    """Beyond the interactive images per minute, uploads and fetches use the bulk lane, and the response shows it."""
    app = ingest_app(
        settings(interactive_per_minute=2), IngestComponents(files=files, events=sink, readiness=StubReadiness())
    )
    async with client_of(app) as client:
        lanes = []
        for number in range(3):
            answer = await client.post(UPLOAD, files={"file": ("a.jpg", JPEG + bytes([number]))})
            assert answer.status_code == 202
            lanes.append(Submitted.model_validate_json(answer.content).lane)
        answer = await client.post(FETCH, json={"url": "https://example.org/a.jpg"})
        lanes.append(Submitted.model_validate_json(answer.content).lane)
    assert lanes == [Lane.INTERACTIVE, Lane.INTERACTIVE, Lane.BULK, Lane.BULK]
    assert sink.bulk == [event for _, event in sink.sent][2:]


def test_the_interactive_rate_uses_a_sliding_window() -> None:
    """The window slides, is per owner, and does not count bulk images."""
    now = 0.0
    lanes = Lanes(2, clock=lambda: now)
    assert [lanes.choose(Lane.BULK, Owner("a")) for _ in range(5)] == [Lane.BULK] * 5
    assert lanes.choose(Lane.INTERACTIVE, Owner("a")) is Lane.INTERACTIVE
    now = 40.0
    chosen = [lanes.choose(Lane.INTERACTIVE, Owner("a")) for _ in range(2)]
    assert chosen == [Lane.INTERACTIVE, Lane.BULK]
    assert lanes.choose(Lane.INTERACTIVE, Owner("b")) is Lane.INTERACTIVE
    now = 60.0
    chosen = [lanes.choose(Lane.INTERACTIVE, Owner("a")) for _ in range(2)]
    assert chosen == [Lane.INTERACTIVE, Lane.BULK]
