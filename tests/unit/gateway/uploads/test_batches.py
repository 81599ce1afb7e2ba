"""Batches: each file is accepted or rejected individually, and the response lists them."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import tracemalloc
import zipfile
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.limits.rate_limits import Limits
from gateway.limits.settings import RateLimitSettings
from schemas.events.envelope import Event
from schemas.events.intake import ImageUploaded
from schemas.http.batches import BatchSubmitted
from streams.errors import DependencyUnavailable
from streams.object_store.factory import open_files
from streams.settings import FilesSettings
from streams.topics import Topic
from tests.support.gateway_components import JPEG, FaultyFiles, Sink, StubReadiness, client_of, refused, settings

BATCH = "/api/v1/images/batch"
ZIP = {"content-type": "application/zip"}
CAT, DOG, COW = JPEG + b"cat", JPEG + b"dog", JPEG + b"cow"


def packed(*members: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """Return a zip archive."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return out.getvalue()


def uploads(sink: Sink) -> list[ImageUploaded]:
    """Return the sent events, by file name."""
    events = [event for _, event in sink.sent if isinstance(event, ImageUploaded)]
    return sorted(events, key=lambda event: event.filename or "")


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    async with open_files(FilesSettings(directory=tmp_path / "files")) as found:
        yield FaultyFiles(found)


@pytest.fixture
def sink() -> Sink:
    return Sink()


@pytest.fixture
def spool(tmp_path: Path) -> Path:
    """The spool folder; empty after each request."""
    folder = tmp_path / "spool"
    folder.mkdir()
    return folder


@pytest.fixture
async def client(files: FaultyFiles, sink: Sink, spool: Path) -> AsyncIterator[httpx.AsyncClient]:
    own = settings(max_upload_bytes=100_000, max_batch_files=5, max_batch_bytes=300_000, spool_dir=spool)
    async with client_of(
        ingest_app(own, IngestComponents(files=files, events=sink, readiness=StubReadiness()))
    ) as found:
        yield found
    assert list(spool.iterdir()) == []


async def send(
    client: httpx.AsyncClient, files: Sequence[tuple[str, bytes]], name: str = "file", **more: Any
) -> httpx.Response:
    return await client.post(BATCH, files=[(name, found) for found in files], **more)


def answered(answer: httpx.Response, status: int) -> BatchSubmitted:
    assert answer.status_code == status, answer.text
    body = BatchSubmitted.model_validate_json(answer.content)
    assert [item.index for item in body.items] == list(range(len(body.items)))
    assert body.accepted == sum(item.accepted is not None for item in body.items)
    assert body.refused == sum(item.error is not None for item in body.items)
    return body


@pytest.mark.parametrize("name", ["file", "files"])
async def test_every_file_becomes_an_image(client: httpx.AsyncClient, sink: Sink, name: str) -> None:
    """All files of a form are accepted: 202, an item each in order, an event each."""
    body = answered(await send(client, [("cat.jpg", CAT), ("dog.jpg", DOG)], name), 202)
    assert [item.filename for item in body.items] == ["cat.jpg", "dog.jpg"]
    assert [item.sha256 for item in body.items] == [hashlib.sha256(data).hexdigest() for data in (CAT, DOG)]
    assert [event.image_id for event in uploads(sink)] == [
        item.accepted.image_id for item in body.items if item.accepted
    ]


@pytest.mark.parametrize("as_part", [True, False], ids=["part", "body"])
async def test_every_member_of_an_archive_becomes_an_image(
    client: httpx.AsyncClient, sink: Sink, as_part: bool
) -> None:
    """A zip, as the body or the only file of a form, is a batch of its files; folders and .DS_Store are skipped."""
    archive = packed(
        ("pets/", b""), ("pets/cat.jpg", CAT), ("__MACOSX/pets/._cat.jpg", b"x"), ("dog.jpg", DOG), (".DS_Store", b"x")
    )
    answer = await (
        send(client, [("pets.zip", archive)]) if as_part else client.post(BATCH, content=archive, headers=ZIP)
    )
    body = answered(answer, 202)
    assert [item.filename for item in body.items] == ["pets/cat.jpg", "dog.jpg"]
    assert [event.filename for event in uploads(sink)] == ["cat.jpg", "dog.jpg"]
    assert [event.original.sha256 for event in uploads(sink)] == [
        hashlib.sha256(found).hexdigest() for found in (CAT, DOG)
    ]


async def test_items_override_the_fields_of_a_batch(client: httpx.AsyncClient, sink: Sink) -> None:
    """Fields apply to every file; `items`, by name or in order, overrides them for single files."""
    common = {"bucket": "pets", "tags": "animal", "metadata": '{"a": 1}', "lane": "bulk"}
    by_name = {"dog.jpg": {"tags": ["dog", "dog"], "metadata": {"b": None}, "category": "big"}}
    for items in (by_name, [None, by_name["dog.jpg"]]):
        sink.sent.clear()
        files = [("cat.jpg", CAT), ("dog.jpg", DOG)]
        answered(await send(client, files, data=common | {"items": json.dumps(items)}), 202)
        cat, dog = uploads(sink)
        assert (cat.bucket, cat.tags, cat.category, cat.context) == ("pets", ("animal",), None, {"a": 1})
        assert (dog.bucket, dog.tags, dog.category, dog.context) == ("pets", ("dog",), "big", {"b": None})
    assert len(sink.bulk) == 4


async def test_fields_of_an_archive_are_query_parameters(client: httpx.AsyncClient, sink: Sink) -> None:
    """An archive as the body takes its fields from query parameters."""
    answer = await client.post(
        BATCH, content=packed(("cat.jpg", CAT)), headers=ZIP, params={"bucket": "pets", "tags": "a,b"}
    )
    answered(answer, 202)
    (cat,) = uploads(sink)
    assert (cat.bucket, cat.tags) == ("pets", ("a", "b"))
    refused(
        await client.post(BATCH, content=packed(("cat.jpg", CAT)), headers=ZIP, params={"colour": "red"}),
        400,
        "unknown-field",
    )


@pytest.mark.parametrize(
    ("items", "code"),
    [
        ("[", "invalid-field"),
        ("3", "invalid-field"),
        ('{"cow.jpg": {}}', "invalid-field"),
        ("[null, null, null]", "invalid-field"),
        ('[{"colour": "red"}]', "invalid-field"),
        ('[{"bucket": "../x"}]', "invalid-field"),
        ('[{"tags": ["a,b"]}]', "invalid-field"),
        ('[{"metadata": {"a": 1e999}}]', "invalid-metadata"),
        (json.dumps([{"metadata": {"a": "x" * 17_000}}]), "invalid-metadata"),
    ],
)
async def test_invalid_items_reject_the_batch(client: httpx.AsyncClient, sink: Sink, items: str, code: str) -> None:
    """Malformed `items`, unknown file names, and unknown or invalid fields: nothing is accepted."""
    answer = await send(client, [("cat.jpg", CAT), ("dog.jpg", DOG)], data={"items": items})
    refused(answer, 422 if code == "invalid-field" else 400, code)
    assert not sink.sent


async def test_a_rejected_file_does_not_affect_the_others(client: httpx.AsyncClient, sink: Sink) -> None:
    """207 when some are rejected: each item has its status and reason, and valid files are accepted."""
    large = JPEG + bytes(100_001)
    files = [("cat.jpg", CAT), ("a.txt", b"hello"), ("empty.jpg", b""), ("large.jpg", large), ("dog.jpg", DOG)]
    body = answered(await send(client, files), 207)
    assert [item.status for item in body.items] == [202, 415, 400, 413, 202]
    assert [item.error.code for item in body.items if item.error] == [
        "unsupported-format", "empty-file", "file-too-large"
    ]  # fmt: skip
    assert [event.filename for event in uploads(sink)] == ["cat.jpg", "dog.jpg"]
    sink.sent.clear()
    body = answered(await client.post(BATCH, content=packed(*files), headers=ZIP), 207)
    assert [item.status for item in body.items] == [202, 415, 400, 413, 202]
    assert len(sink.sent) == 2


async def test_a_batch_without_an_accepted_file_is_a_problem(client: httpx.AsyncClient, sink: Sink) -> None:
    """A common reason is the problem; different reasons are 422, with each file's own."""
    problem = refused(await send(client, [("a.txt", b"a"), ("b.txt", b"b")]), 415, "unsupported-format")
    assert [item.field for item in problem.errors] == ["a.txt", "b.txt"]
    problem = refused(await send(client, [("a.txt", b"a"), ("b.jpg", b"")]), 422, "nothing-accepted")
    assert [item.detail.split(":")[0] for item in problem.errors] == ["unsupported-format", "empty-file"]
    assert not sink.sent


async def test_a_digest_is_checked_per_file(client: httpx.AsyncClient, sink: Sink) -> None:
    """A part with a wrong Content-Digest is rejected individually."""
    part = b'--x\r\nContent-Disposition: form-data; name="file"; filename="%b"\r\n%b\r\n%b\r\n'
    wrong = b"Content-Digest: sha-256=:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=:\r\n"
    body = part % (b"a.jpg", b"", CAT) + part % (b"b.jpg", wrong, DOG) + b"--x--\r\n"
    answer = await client.post(BATCH, content=body, headers={"content-type": "multipart/form-data; boundary=x"})
    assert [item.status for item in answered(answer, 207).items] == [202, 400]
    assert len(sink.sent) == 1


async def test_files_and_bytes_of_a_batch_are_limited(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """One file or one byte above the limit rejects the batch, as a form and as an archive."""
    many = [(f"{number}.jpg", JPEG) for number in range(6)]
    refused(await send(client, many), 413, "too-many-files")
    refused(await client.post(BATCH, content=packed(*many), headers=ZIP), 413, "too-many-files")
    heavy = [(f"{number}.jpg", JPEG + bytes(99_000)) for number in range(4)]
    refused(await send(client, [*heavy, ("x.jpg", JPEG + bytes(300_000))]), 413, "file-too-large")
    refused(await client.post(BATCH, content=packed(*heavy), headers=ZIP), 413, "file-too-large")
    assert not await files.objects()


async def test_an_empty_batch_is_rejected(client: httpx.AsyncClient) -> None:
    """A form without files, an empty archive, a body that is no archive and one of another type are rejected."""
    refused(await client.post(BATCH, files={"bucket": (None, "pets")}), 400, "missing-file")
    refused(await client.post(BATCH, content=packed(), headers=ZIP), 422, "invalid-archive")
    refused(await client.post(BATCH, content=CAT, headers=ZIP), 422, "invalid-archive")
    refused(await client.post(BATCH, content=b"text" * 100, headers=ZIP), 415, "unsupported-format")
    refused(
        await client.post(BATCH, content=CAT, headers={"content-type": "image/jpeg"}), 415, "unsupported-media-type"
    )


async def test_an_archive_beside_images_is_not_opened(client: httpx.AsyncClient, sink: Sink) -> None:
    """A zip among other files is rejected individually; its members are not read."""
    body = answered(await send(client, [("cat.jpg", CAT), ("more.zip", packed(("dog.jpg", DOG)))]), 207)
    assert [item.status for item in body.items] == [202, 415]
    assert len(sink.sent) == 1


async def test_a_retried_batch_is_replayed(client: httpx.AsyncClient, sink: Sink) -> None:
    """With the same key a batch has the same answer, problems included, and creates no further images."""
    key, files = {"Idempotency-Key": "batch"}, [("cat.jpg", CAT), ("a.txt", b"a"), ("dog.jpg", DOG)]
    first, again = await send(client, files, headers=key), await send(client, files, headers=key)
    assert first.json() == again.json()
    assert again.headers["idempotency-replayed"] == "true"
    assert len(sink.sent) == 2
    refused(await send(client, files[:2], headers=key), 422, "idempotency-key-reused")


async def test_an_interrupted_batch_is_continued(files: FaultyFiles) -> None:
    """Kafka fails in the middle: 207 with 503s; a retry with the same key accepts the rest, nothing twice."""

    class Leaving(Sink):
        def __init__(self, after: int) -> None:
            super().__init__()
            self.after = after

        async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
            if len(self.sent) >= self.after:
                raise DependencyUnavailable("Kafka is away")
            await super().send(topic, event, traceparent=traceparent, bulk=bulk)

    sink, key = Leaving(2), {"Idempotency-Key": "batch"}
    sent = [(f"{number}.jpg", JPEG + bytes([number])) for number in range(6)]
    async with client_of(
        ingest_app(settings(), IngestComponents(files=files, events=sink, readiness=StubReadiness()))
    ) as client:
        first = answered(await send(client, sent, headers=key), 207)
        assert (first.accepted, first.refused) == (2, 4)
        assert {item.status for item in first.items if item.error} == {503}
        sink.after = 100
        second = answered(await send(client, sent, headers=key), 202)
        third = await send(client, sent, headers=key)
    before = {item.index: item.accepted.image_id for item in first.items if item.accepted}
    after = {item.index: item.accepted.image_id for item in second.items if item.accepted}
    assert before.items() <= after.items()
    assert {event.image_id for event in uploads(sink)} == set(after.values())
    assert len(await files.receipts()) == 6
    assert third.headers["idempotency-replayed"] == "true"


async def test_a_batch_may_reuse_what_is_there(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """With on_duplicate=reuse known bytes are answered with their image: 200 if all are known."""
    first = answered(await send(client, [("cat.jpg", CAT)]), 202).items[0].accepted
    assert first is not None
    await files.put(f"images/{first.image_id[-2:]}/{first.image_id}/1/master.webp", b"m", content_type="image/webp")
    body = answered(await send(client, [("cat.jpg", CAT), ("dog.jpg", DOG)], data={"on_duplicate": "reuse"}), 202)
    assert [item.status for item in body.items] == [200, 202]
    body = answered(await send(client, [("again.jpg", CAT)], data={"on_duplicate": "reuse"}), 200)
    assert body.items[0].accepted is not None
    assert (body.items[0].accepted.image_id, body.items[0].accepted.duplicate) == (first.image_id, True)


async def test_each_file_counts_against_the_limit(files: FaultyFiles, sink: Sink) -> None:
    """A batch of three is three uploads: it is rejected as a whole when only two are left."""
    limits = Limits(RateLimitSettings(uploads="4/hour"))
    components = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
    async with client_of(ingest_app(settings(), components)) as client:
        files_ = [("cat.jpg", CAT), ("dog.jpg", DOG)]
        answered(await send(client, files_), 202)
        refused(await send(client, [*files_, ("cow.jpg", COW)]), 429, "rate-limited")
        assert len(sink.sent) == 2


async def test_without_kafka_a_batch_is_503(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """If no file is accepted because a dependency is unavailable, the response is 503 with Retry-After."""
    sink.unavailable = True
    answer = await send(client, [("cat.jpg", CAT), ("dog.jpg", DOG)])
    refused(answer, 503, "dependency-unavailable")
    assert answer.headers["retry-after"]
    assert not await files.objects()


async def test_a_batch_is_streamed_to_disk(files: FaultyFiles, sink: Sink, spool: Path) -> None:
    """Sixty megabytes in twenty files are received with a few megabytes of memory."""
    block = bytes(range(256)) * 4096

    def body() -> Iterator[bytes]:
        for number in range(20):
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="%d"\r\n\r\n' % number + JPEG
            for _ in range(3):
                yield block
            yield b"%d\r\n" % number
        yield b"--x--\r\n"

    async def chunks() -> AsyncIterator[bytes]:
        for chunk in body():
            await asyncio.sleep(0)
            yield chunk

    app = ingest_app(settings(spool_dir=spool), IngestComponents(files=files, events=sink, readiness=StubReadiness()))
    async with client_of(app) as client:
        tracemalloc.start()
        try:
            headers = {"content-type": "multipart/form-data; boundary=x"}
            answer = await client.post(BATCH, content=chunks(), headers=headers)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    answered(answer, 202)
    assert peak < 20_000_000, f"{peak / 1e6:.0f} MB"
