"""Resumable uploads: the tus 1.0.0 protocol, and one image accepted with the last byte."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request

from gateway.access.identity import Identity, Scope
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.http.problems import Problem
from gateway.limits.quotas import Quotas
from gateway.limits.rate_limits import Limits
from gateway.limits.settings import QuotaSettings, RateLimitSettings
from gateway.upload_sessions.leases import LEASE_S, distributed_lease
from gateway.upload_sessions.store import UploadKind, Uploads
from schemas.events.intake import ImageUploaded
from schemas.http.problems import ProblemCode
from schemas.http.resumable import UploadState, UploadView
from schemas.values import DEFAULT_OWNER, Owner, new_image_id
from streams.errors import DeliveryUnconfirmed
from streams.object_store.factory import open_files
from streams.object_store.keys import finishing_prefix, image_key, pieces_prefix, upload_key, uploads_prefix
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings
from tests.support.gateway_components import BASE, JPEG, FaultyFiles, Sink, StubReadiness, client_of, refused, settings

UPLOADS = "/api/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PART = {**TUS, "Content-Type": "application/offset+octet-stream"}
NONE: Mapping[str, str] = {}
PIECE = 64 << 10
IMAGE = JPEG + bytes(range(256)) * 800  # more than three pieces


class ByName:
    """An authenticator that trusts the Authorization header."""

    async def identify(self, request: Request) -> Identity:
        owner = Owner(request.headers.get("authorization", "default"))
        return Identity(owner, frozenset(Scope), owner)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    """A real object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield FaultyFiles(store)


@pytest.fixture
def sink() -> Sink:
    """The event sink."""
    return Sink()


@pytest.fixture
def components(files: Any, sink: Sink) -> IngestComponents:
    """The components of an ingest app."""
    return IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=ByName())


def gateway(components: IngestComponents, **changes: object) -> FastAPI:
    """Return an ingest app with small pieces."""
    return ingest_app(settings(piece_bytes=PIECE, max_upload_bytes=1_000_000, **changes), components)


@pytest.fixture
def app(components: IngestComponents) -> FastAPI:
    """An ingest app that allows three unfinished uploads."""
    return gateway(components, max_unfinished_uploads=3)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app."""
    async with client_of(app) as found:
        yield found


def metadata_header(**fields: str) -> dict[str, str]:
    """Return an Upload-Metadata header."""
    pairs = (f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in fields.items())
    return {"Upload-Metadata": ",".join(pairs)}


async def begin(client: httpx.AsyncClient, size: int = len(IMAGE), headers: Mapping[str, str] = NONE) -> str:
    """Create an upload; return its path."""
    answer = await client.post(UPLOADS, headers={**TUS, "Upload-Length": str(size), **headers})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"].removeprefix(BASE)


async def send(client: httpx.AsyncClient, path: str, offset: int, data: bytes, **headers: str) -> httpx.Response:
    """Send a part."""
    return await client.patch(path, headers={**PART, "Upload-Offset": str(offset), **headers}, content=data)


async def offset_of(client: httpx.AsyncClient, path: str) -> int:
    """Return the upload's offset."""
    answer = await client.head(path, headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


async def keys(files: FileStore, prefix: str) -> list[str]:
    """Return the keys under a prefix."""
    return [found.key async for found in files.list(prefix)]


async def cut_off(app: FastAPI, path: str, offset: int, data: bytes) -> int:
    """Send less than the announced Content-Length, then disconnect; return the status the client would receive."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": data[at : at + 10_000], "more_body": True}
        for at in range(0, len(data), 10_000)
    ]
    messages.append({"type": "http.disconnect"})
    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def receive() -> Any:
        return messages.pop(0)

    headers = {**PART, "Upload-Offset": str(offset), "Content-Length": str(len(data) + 1)}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "PATCH", "path": path, "query_string": b"", "headers": raw, "root_path": ""}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("darkroom.test", 80)}, receive, send)
    return statuses[0]


async def test_options_returns_the_supported_protocol(client: httpx.AsyncClient) -> None:
    """OPTIONS needs no version header and returns extensions, algorithms and the maximum size."""
    answer = await client.options(UPLOADS)
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert set(answer.headers["tus-extension"].split(",")) == {
        "creation",
        "creation-defer-length",
        "creation-with-upload",
        "expiration",
        "checksum",
        "termination",
    }
    assert answer.headers["tus-max-size"] == "1000000"
    assert set(answer.headers["tus-checksum-algorithm"].split(",")) == {"sha1", "sha256"}


async def test_an_image_in_parts_is_accepted_with_its_last_byte(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """The offset grows with each part; the last response contains the job, and the original equals the bytes sent."""
    path = await begin(
        client, headers=metadata_header(filename="../cat.jpg", bucket="pets", tags="a,b", metadata='{"n": 1}')
    )
    assert not sink.sent
    offset = 0
    for end in (10, 100_000, 150_000, len(IMAGE)):
        answer = await send(client, path, offset, IMAGE[offset:end])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(end))
        assert answer.headers["tus-resumable"] == "1.0.0"
        assert "content-length" not in answer.headers
        offset = end
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert (event.filename, event.bucket, event.tags, event.context) == ("cat.jpg", "pets", ("a", "b"), {"n": 1})
    assert answer.headers["darkroom-job"] == event.job_id
    assert answer.headers["link"] == f'<{BASE}/api/v1/images/jobs/{event.job_id}>; rel="status"'
    assert await files.get(event.original.key) == IMAGE
    assert event.original.sha256 == hashlib.sha256(IMAGE).hexdigest()
    assert [await keys(files, root) for root in ("uploads/", "pieces/", "finishing/")] == [[], [], []]


async def test_head_returns_all_that_a_client_needs_to_resume(client: httpx.AsyncClient) -> None:
    """Offset, length, the original metadata and the expiry; not cacheable."""
    metadata = metadata_header(filename="cat.jpg")
    path = await begin(client, headers=metadata)
    await send(client, path, 0, IMAGE[:1000])
    answer = await client.head(path, headers=TUS)
    assert answer.headers["upload-offset"] == "1000"
    assert answer.headers["upload-length"] == str(len(IMAGE))
    assert answer.headers["upload-metadata"] == metadata["Upload-Metadata"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["tus-resumable"] == "1.0.0"
    left = parsedate_to_datetime(answer.headers["upload-expires"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24)


@pytest.mark.parametrize("version", [None, "0.2.2", "2.0.0"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
async def test_an_unsupported_protocol_version_is_rejected(
    client: httpx.AsyncClient, method: str, version: str | None
) -> None:
    """412 with the supported version, and no other effect."""
    path = UPLOADS if method == "POST" else await begin(client)
    headers = {**PART, "Upload-Offset": "0", "Upload-Length": "5"}
    del headers["Tus-Resumable"]
    if version:
        headers["Tus-Resumable"] = version
    answer = await client.request(method, path, headers=headers, content=b"" if method == "HEAD" else JPEG)
    assert answer.status_code == 412
    assert answer.headers["tus-version"] == answer.headers["tus-resumable"] == "1.0.0"
    if method == "PATCH":
        assert await offset_of(client, path) == 0


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({}, 400, "bad-request"),
        ({"Upload-Length": "-1"}, 400, "bad-request"),
        ({"Upload-Length": "ten"}, 400, "bad-request"),
        ({"Upload-Length": "9" * 30}, 400, "bad-request"),
        ({"Upload-Length": "10", "Upload-Defer-Length": "1"}, 400, "bad-request"),
        ({"Upload-Defer-Length": "2"}, 400, "bad-request"),
        ({"Upload-Length": "10", "Upload-Concat": "partial"}, 400, "bad-request"),
        ({"Upload-Length": "0"}, 400, "empty-file"),
        ({"Upload-Length": "1000001"}, 413, "file-too-large"),
        ({"Upload-Length": "10", "Upload-Metadata": "filename !!!"}, 400, "bad-request"),
        ({"Upload-Length": "10", "Upload-Metadata": "filename /w=="}, 400, "bad-request"),
        ({"Upload-Length": "10", "Upload-Metadata": "filename YQ==,filename YQ=="}, 400, "bad-request"),
        ({"Upload-Length": "10", "Upload-Metadata": "mtime MQ==,mtime MQ=="}, 400, "bad-request"),
        ({"Upload-Length": "10", **metadata_header(metadata="[]")}, 400, "invalid-metadata"),
        ({"Upload-Length": "10", **metadata_header(metadata="x" * 40_000)}, 400, "invalid-metadata"),
        ({"Upload-Length": "10", **metadata_header(bucket="../x")}, 400, "invalid-bucket"),
        ({"Upload-Length": "10", **metadata_header(lane="fast")}, 422, "invalid-field"),
    ],
)
async def test_an_invalid_creation_request_is_rejected(
    client: httpx.AsyncClient, files: FaultyFiles, headers: dict[str, str], status: int, code: str
) -> None:
    """An invalid, excessive, ambiguous or zero length, or invalid metadata, creates no upload."""
    answer = await client.post(UPLOADS, headers={**TUS, **headers})
    refused(answer, status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert await keys(files, "uploads/") == []


async def test_metadata_names_without_a_meaning_are_ignored(client: httpx.AsyncClient, sink: Sink) -> None:
    """Any name that the gateway does not read is ignored, with any value, and returned; `name` is the file's name."""
    sent = metadata_header(name="a.jpg", type="text/html", relativePath="x/y", mtime="1764417600", checksum="sha1 x")
    sent["Upload-Metadata"] += ",is_confidential,digest /w==,thumb !!!"
    path = await begin(client, len(JPEG), sent)
    assert (await client.head(path, headers=TUS)).headers["upload-metadata"] == sent["Upload-Metadata"]
    await send(client, path, 0, JPEG)
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert (event.filename, event.original.content_type) == ("a.jpg", "image/jpeg")
    await begin(client, headers={"Upload-Metadata": ""})


async def test_the_creation_request_may_contain_bytes(client: httpx.AsyncClient, sink: Sink) -> None:
    """Some of them, or all: then the image is accepted immediately."""
    headers = {**PART, "Upload-Length": str(len(IMAGE))}
    answer = await client.post(UPLOADS, headers=headers, content=IMAGE[:70_000])
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "70000")
    assert await offset_of(client, answer.headers["location"]) == 70_000
    answer = await client.post(UPLOADS, headers=headers, content=IMAGE)
    assert (answer.status_code, answer.headers["darkroom-job"]) == (201, sink.sent[0][1].job_id)
    refused(
        await client.post(UPLOADS, headers={**TUS, "Upload-Length": "9"}, content=b"x"), 415, "unsupported-media-type"
    )


async def test_a_deferred_length_is_declared_once(client: httpx.AsyncClient, sink: Sink) -> None:
    """Before that, HEAD returns Upload-Defer-Length; a second, different length is rejected."""
    answer = await client.post(UPLOADS, headers={**TUS, "Upload-Defer-Length": "1"})
    path = answer.headers["location"]
    assert (await send(client, path, 0, IMAGE[:5000])).status_code == 204
    answer = await client.head(path, headers=TUS)
    assert answer.headers["upload-defer-length"] == "1"
    assert "upload-length" not in answer.headers
    refused(await send(client, path, 5000, b"", **{"Upload-Length": "4999"}), 400, "bad-request")
    refused(await send(client, path, 5000, b"", **{"Upload-Length": "1000001"}), 413, "file-too-large")
    assert (await send(client, path, 5000, b"", **{"Upload-Length": str(len(IMAGE))})).status_code == 204
    refused(await send(client, path, 5000, b"", **{"Upload-Length": "6000"}), 400, "bad-request")
    answer = await send(client, path, 5000, IMAGE[5000:])
    assert answer.headers["darkroom-job"] == sink.sent[0][1].job_id


async def test_a_part_with_a_wrong_offset_is_rejected(client: httpx.AsyncClient) -> None:
    """409 with the current offset; an invalid offset is 400, another media type 415."""
    path = await begin(client)
    await send(client, path, 0, IMAGE[:100])
    for offset in (0, 99, 101):
        answer = await send(client, path, offset, IMAGE[offset:200])
        refused(answer, 409, "offset-mismatch")
        assert answer.headers["upload-offset"] == "100"
    refused(await client.patch(path, headers=PART, content=b"x"), 400, "bad-request")
    refused(await client.patch(path, headers={**PART, "Upload-Offset": "1e2"}, content=b"x"), 400, "bad-request")
    refused(
        await client.patch(path, headers={**TUS, "Upload-Offset": "100"}, content=b"x"), 415, "unsupported-media-type"
    )
    assert await offset_of(client, path) == 100


async def test_a_part_beyond_the_end_of_the_file_is_rejected(client: httpx.AsyncClient) -> None:
    """By its Content-Length before it is read, else at the first byte in excess."""

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield IMAGE[:300]

    path = await begin(client, 1000)
    refused(await send(client, path, 0, IMAGE[:1001]), 413, "file-too-large")
    answer = await client.patch(path, headers={**PART, "Upload-Offset": "0"}, content=drip())
    refused(answer, 413, "file-too-large")
    assert await offset_of(client, path) == 0


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_a_part_is_verified_against_its_checksum(
    client: httpx.AsyncClient, files: FaultyFiles, algorithm: str
) -> None:
    """A match is stored; a mismatch is 460 and stores no piece of the part."""

    def checksum(data: bytes) -> dict[str, str]:
        digest = base64.b64encode(hashlib.new(algorithm, data).digest()).decode()
        return {"Upload-Checksum": f"{algorithm} {digest}"}

    path = await begin(client)
    refused(await send(client, path, 0, IMAGE[:150_000], **checksum(IMAGE[1:150_001])), 460, "checksum-mismatch")
    assert await keys(files, "pieces/") == []
    assert (await send(client, path, 0, IMAGE[:150_000], **checksum(IMAGE[:150_000]))).status_code == 204
    assert await offset_of(client, path) == 150_000


@pytest.mark.parametrize("checksum", ["md5 1B2M2Y8AsgTpgAmY7PhCfg==", "sha1", "sha1 !!!", "", "sha256 ü"])
async def test_an_invalid_checksum_header_is_rejected(client: httpx.AsyncClient, checksum: str) -> None:
    """An unsupported algorithm or invalid Base64 is 400, and stores nothing."""
    path = await begin(client)
    headers = {**PART, "Upload-Offset": "0", "Upload-Checksum": checksum.encode()}
    answer = await client.patch(path, headers=headers, content=IMAGE[:100])  # type: ignore[arg-type]
    refused(answer, 400, "invalid-digest")
    assert await offset_of(client, path) == 0


async def test_bytes_received_before_a_disconnect_are_kept(client: httpx.AsyncClient, app: FastAPI, sink: Sink) -> None:
    """To the byte, including a partial piece; the client continues there, and the image is complete."""
    path = await begin(client)
    assert await cut_off(app, path, 0, IMAGE[:100_001]) == 400
    assert await offset_of(client, path) == 100_001
    await send(client, path, 100_001, IMAGE[100_001:])
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert event.original.sha256 == hashlib.sha256(IMAGE).hexdigest()


async def test_another_gateway_continues_an_upload(
    client: httpx.AsyncClient, components: IngestComponents, sink: Sink
) -> None:
    """An upload's state is in the object store only: any gateway finds and completes it."""
    path = await begin(client)
    await send(client, path, 0, IMAGE[:70_000])
    async with client_of(gateway(components)) as other:
        assert await offset_of(other, path) == 70_000
        answer = await send(other, path, 70_000, IMAGE[70_000:])
    assert answer.headers["darkroom-job"] == sink.sent[0][1].job_id
    assert (await client.head(path, headers=TUS)).headers["darkroom-job"] == sink.sent[0][1].job_id


async def test_a_new_request_preempts_a_stalled_one(client: httpx.AsyncClient) -> None:
    """A part whose client sends nothing is aborted, and its bytes kept, when another request arrives."""
    path = await begin(client)
    silent = asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield IMAGE[:1234]
        silent.set()
        await asyncio.Event().wait()

    headers = {**PART, "Upload-Offset": "0"}
    first = asyncio.create_task(client.patch(path, headers=headers, content=stalled()))
    await silent.wait()
    assert await offset_of(client, path) == 1234
    answer = await first
    refused(answer, 423, "upload-busy")
    assert answer.headers["upload-offset"] == "1234"


async def test_the_bytes_of_a_stalled_client_are_kept(components: IngestComponents) -> None:
    """408 after the idle limit, with the current offset."""

    async def stalled() -> AsyncIterator[bytes]:
        yield IMAGE[:1234]
        await asyncio.Event().wait()

    async with client_of(gateway(components, upload_idle_s=0.05)) as client:
        path = await begin(client)
        answer = await client.patch(path, headers={**PART, "Upload-Offset": "0"}, content=stalled())
        refused(answer, 408, "upload-too-slow")
        assert answer.headers["upload-offset"] == "1234"
        assert await offset_of(client, path) == 1234


async def test_of_two_parts_at_the_same_offset_one_is_stored(components: IngestComponents, files: FaultyFiles) -> None:
    """Two gateways receive different bytes at the same offset: one is rejected, and the bytes are not mixed."""
    async with client_of(gateway(components)) as one, client_of(gateway(components)) as other:
        path = await begin(one)
        bodies = [JPEG + b"1" * 10_000, JPEG + b"2" * 10_000]
        answers = await asyncio.gather(
            *(send(at, path, 0, sent) for at, sent in zip((one, other), bodies, strict=True))
        )
        assert sorted(answer.status_code for answer in answers) == [204, 409]
        winner = bodies[[answer.status_code for answer in answers].index(204)]
        (key,) = await keys(files, "pieces/")
        assert await files.get(key) == winner
        assert await offset_of(one, path) == len(winner)


async def test_repeated_requests_after_completion_create_no_second_image(client: httpx.AsyncClient, sink: Sink) -> None:
    """HEAD, a repeated last PATCH and GET return the same job."""
    path = await begin(client, len(JPEG))
    job = (await send(client, path, 0, JPEG)).headers["darkroom-job"]
    for answer in (await client.head(path, headers=TUS), await send(client, path, len(JPEG), b"")):
        assert (answer.headers["darkroom-job"], answer.headers["upload-offset"]) == (job, str(len(JPEG)))
    refused(await send(client, path, 0, JPEG), 409, "offset-mismatch")
    refused(await send(client, path, len(JPEG), b"x"), 413, "file-too-large")
    view = UploadView.model_validate_json((await client.get(path)).content)
    assert (view.state, view.offset, view.size) == (UploadState.ACCEPTED, len(JPEG), len(JPEG))
    assert view.job is not None
    assert view.job.job_id == job
    assert len(sink.sent) == 1


async def test_while_kafka_is_unavailable_no_upload_is_reported_complete(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """The last part and HEAD return 503 until one of them has accepted the image."""
    path = await begin(client, len(JPEG))
    sink.unavailable = True
    refused(await send(client, path, 0, JPEG), 503, "dependency-unavailable")
    answer = await client.head(path, headers=TUS)
    assert (answer.status_code, answer.headers["tus-resumable"]) == (503, "1.0.0")
    assert await files.receipts() == []
    sink.unavailable = False
    answer = await client.head(path, headers=TUS)
    assert answer.headers["darkroom-job"] == sink.sent[0][1].job_id
    assert len(await files.receipts()) == 1


async def test_an_image_with_a_tombstone_is_replaced_by_another(
    client: httpx.AsyncClient, components: IngestComponents, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image whose event Kafka did not confirm but may have stays deleted; the upload becomes a new image."""

    async def unconfirmed(*_args: object, **_more: object) -> None:
        raise DeliveryUnconfirmed("timed out")

    path = await begin(client, len(JPEG))
    with monkeypatch.context() as changed:
        changed.setattr(sink, "send", unconfirmed)
        refused(await send(client, path, 0, JPEG), 503, "dependency-unavailable")
    (tombstone,) = [
        key.removeprefix("erasures/").removesuffix(".json") for key in await keys(components.files, "erasures/")
    ]
    await client.head(path, headers=TUS)
    assert len(sink.sent) == 1
    assert sink.sent[0][1].image_id != tombstone


async def test_a_gateway_crash_before_the_result_is_stored_creates_no_second_image(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """The next request finds the receipt by the image id assigned at creation, and returns the same job."""
    path = await begin(client, len(JPEG))
    record = await files.get(upload_key("default", path.rsplit("/", 1)[-1]))
    await send(client, path, 0, JPEG)
    upload_id = path.rsplit("/", 1)[-1]
    await files.delete(f"uploaded/default/{upload_id}.json")
    await files.put(upload_key("default", upload_id), record, content_type="application/json")
    await files.put(f"{pieces_prefix('default', upload_id)}{0:020d}", JPEG, content_type="x/y")
    answer = await client.head(path, headers=TUS)
    assert {event.job_id for _, event in sink.sent} == {answer.headers["darkroom-job"]}
    assert len(await files.receipts()) == 1


async def test_an_upload_that_another_gateway_completes_is_busy(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """423 with Retry-After: two concurrent completions could revert each other's writes."""
    path = await begin(client, len(JPEG))
    async with distributed_lease(files, finishing_prefix("default", path.rsplit("/", 1)[-1])):
        answer = await send(client, path, 0, JPEG)
        refused(answer, 423, "upload-busy")
        assert answer.headers["retry-after"] == "5"
    assert (await client.head(path, headers=TUS)).headers["darkroom-job"]


async def test_the_lease_of_a_crashed_gateway_expires(files: FaultyFiles) -> None:
    """No other gateway acquires it before, and exactly one does afterwards."""
    prefix, now = finishing_prefix("default", new_image_id()), 1000.0
    await files.put(f"{prefix}000001", f"{now + LEASE_S}".encode(), content_type="text/plain")
    with pytest.raises(Problem, match="is processing"):
        async with distributed_lease(files, prefix, clock=lambda: now):
            raise AssertionError("unreachable")
    async with distributed_lease(files, prefix, clock=lambda: now + LEASE_S):
        with pytest.raises(Problem, match="is processing"):
            async with distributed_lease(files, prefix, clock=lambda: now + LEASE_S):
                raise AssertionError("unreachable")


async def test_a_file_that_is_no_image_is_rejected_with_its_first_piece(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """415 immediately, no bytes are kept, and later requests return the same problem."""
    path = await begin(client, headers=metadata_header(filename="evil.jpg"))
    refused(await send(client, path, 0, b"<html>" * 100), 415, "unsupported-format")
    refused(await send(client, path, 0, IMAGE), 415, "unsupported-format")
    assert (await client.head(path, headers=TUS)).status_code == 415
    view = UploadView.model_validate_json((await client.get(path)).content)
    assert (view.state, view.job) == (UploadState.REFUSED, None)
    assert view.error is not None
    assert view.error.code == "unsupported-format"
    assert [await keys(files, root) for root in ("uploads/", "pieces/")] == [[], []]
    assert not sink.sent


async def test_a_file_that_is_no_image_is_rejected_in_small_parts_too(client: httpx.AsyncClient, sink: Sink) -> None:
    """Parts too short for a signature are stored; completion checks the whole file."""
    path = await begin(client, 70)
    for at in range(0, 70, 35):
        answer = await send(client, path, at, b"<html>" * 5 + b"12345")
    refused(answer, 415, "unsupported-format")
    assert not sink.sent


async def test_delete_aborts_an_upload(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """DELETE removes the record and all pieces; the upload is then 404."""
    path = await begin(client)
    await send(client, path, 0, IMAGE[:100])
    assert (await client.delete(path, headers=TUS)).status_code == 204
    assert (await client.head(path, headers=TUS)).status_code == 404
    refused(await send(client, path, 100, IMAGE[100:]), 404, "not-found")
    assert [await keys(files, root) for root in ("uploads/", "pieces/")] == [[], []]


async def test_delete_after_completion_keeps_the_image(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """DELETE of an ended upload removes the upload's result only."""
    path = await begin(client, len(JPEG))
    await send(client, path, 0, JPEG)
    assert (await client.delete(path, headers=TUS)).status_code == 204
    refused(await client.get(path), 404, "not-found")
    assert len(await files.receipts()) == 1


async def test_an_expired_upload_is_gone(components: IngestComponents) -> None:
    """PATCH, GET and HEAD return 410."""
    async with client_of(gateway(components, upload_expires_s=0.001)) as client:
        path = await begin(client)
        await asyncio.sleep(1.1)  # the expiry is stored in whole seconds
        refused(await send(client, path, 0, IMAGE), 410, "upload-expired")
        refused(await client.get(path), 410, "upload-expired")
        assert (await client.head(path, headers=TUS)).status_code == 410


async def test_another_owners_upload_is_not_found(client: httpx.AsyncClient) -> None:
    """Every method returns 404, as for an unknown or invalid id."""
    path = await begin(client)
    mallory = {"Authorization": "mallory"}
    for at in (path, f"{UPLOADS}/{new_image_id()}", f"{UPLOADS}/..%2Fdefault", f"{UPLOADS}/x"):
        assert (await client.head(at, headers={**TUS, **mallory})).status_code == 404
        refused(await client.get(at, headers=mallory), 404, "not-found")
        refused(await send(client, at, 0, JPEG, **mallory), 404, "not-found")
        refused(await client.delete(at, headers={**TUS, **mallory}), 404, "not-found")
    assert await offset_of(client, path) == 0


async def test_unfinished_uploads_are_limited_per_owner(client: httpx.AsyncClient) -> None:
    """429 until one is completed or aborted; other owners are not affected."""
    paths = [await begin(client) for _ in range(3)]
    headers = {**TUS, "Upload-Length": "10"}
    refused(await client.post(UPLOADS, headers=headers), 429, "too-many-uploads")
    await begin(client, headers={"Authorization": "another"})
    await client.delete(paths[0], headers=TUS)
    await begin(client)


async def test_uploads_that_begin_together_are_limited_exactly(client: httpx.AsyncClient) -> None:
    """Of 60 concurrent creations exactly the limit of unfinished uploads succeeds; all others are 429."""
    headers = {**TUS, "Upload-Length": "10"}
    answers = await asyncio.gather(*(client.post(UPLOADS, headers=headers) for _ in range(60)))
    assert sorted(answer.status_code for answer in answers) == [201] * 3 + [429] * 57
    for answer in answers:
        if answer.status_code == 201:
            assert (await client.delete(answer.headers["location"], headers=TUS)).status_code == 204
    await begin(client)


async def test_uploads_that_begin_at_two_gateways_never_exceed_the_limit(files: FaultyFiles) -> None:
    """Two gateways on one store together begin at most as many uploads as there is room for; the rest leave nothing."""
    gateways = [Uploads(settings(max_unfinished_uploads=3), files) for _ in range(2)]
    records = [uploads.new(DEFAULT_OWNER, UploadKind.RESUMABLE) for uploads in gateways for _ in range(10)]
    begun = await asyncio.gather(
        *(gateways[at // 10].begin(record) for at, record in enumerate(records)), return_exceptions=True
    )
    assert {result.code for result in begun if isinstance(result, Problem)} == {ProblemCode.TOO_MANY_UPLOADS}
    assert 1 <= begun.count(None) <= 3
    assert len([info async for info in files.list(uploads_prefix(DEFAULT_OWNER))]) == begun.count(None)


async def test_only_the_creation_of_an_upload_counts_against_the_rate_limit(files: Any, sink: Sink) -> None:
    """Creating an upload counts as one upload; its parts do not count."""
    limits = Limits(RateLimitSettings(uploads="1/hour"))
    components = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
    async with client_of(gateway(components)) as client:
        path = await begin(client)
        for at in range(0, 300, 100):
            assert (await send(client, path, at, IMAGE[at : at + 100])).status_code == 204
        refused(await client.post(UPLOADS, headers={**TUS, "Upload-Length": "10"}), 429, "rate-limited")


async def test_an_unavailable_store_loses_no_bytes(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """503 with the Tus-Resumable header, and the upload continues at the same offset."""
    path = await begin(client)
    await send(client, path, 0, IMAGE[:1000])
    files.unavailable = True
    answer = await send(client, path, 1000, IMAGE[1000:])
    refused(answer, 503, "dependency-unavailable")
    assert answer.headers["tus-resumable"] == "1.0.0"
    files.unavailable = False
    assert await offset_of(client, path) == 1000


async def test_on_duplicate_reuse_applies_to_resumable_uploads(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """An upload of known bytes creates no second image and returns the first image's job."""
    first = await begin(client, len(JPEG))
    job = (await send(client, first, 0, JPEG)).headers["darkroom-job"]
    image_id = sink.sent[0][1].image_id
    await files.put(image_key(image_id, 1, "master.webp"), b"x", content_type="image/webp")  # in progress
    second = await begin(client, len(JPEG), metadata_header(on_duplicate="reuse"))
    assert (await send(client, second, 0, JPEG)).headers["darkroom-job"] == job
    view = UploadView.model_validate_json((await client.get(second)).content)
    assert view.job is not None
    assert (view.job.image_id, view.job.duplicate) == (image_id, True)
    assert len(sink.sent) == 1


async def test_post_with_a_method_override_is_dispatched(client: httpx.AsyncClient, sink: Sink) -> None:
    """X-HTTP-Method-Override names the method; a POST without it, or with another method, is 405."""
    path = await begin(client, len(JPEG))
    headers = {**PART, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = await client.post(path, headers=headers, content=JPEG)
    assert (answer.status_code, answer.headers["darkroom-job"]) == (204, sink.sent[0][1].job_id)
    answer = await client.post(path, headers={**TUS, "X-HTTP-Method-Override": "HEAD"})
    assert (answer.status_code, answer.headers["upload-offset"]) == (200, str(len(JPEG)))
    for override in ({}, {"X-HTTP-Method-Override": "TRACE"}):
        answer = await client.post(path, headers={**TUS, **override})
        refused(answer, 405, "method-not-allowed")
        assert "PATCH" in answer.headers["allow"]
    assert (await client.post(path, headers={**TUS, "X-HTTP-Method-Override": "DELETE"})).status_code == 204
    refused(await client.get(path), 404, "not-found")


async def test_the_quota_is_checked_before_any_byte_is_sent(files: Any, sink: Sink) -> None:
    """The owner's quota is checked at creation and at completion."""
    quotas = Quotas(QuotaSettings(bytes=1000), files)
    components = IngestComponents(files=files, events=sink, readiness=StubReadiness(), quotas=quotas)
    async with client_of(gateway(components)) as client:
        refused(await client.post(UPLOADS, headers={**TUS, "Upload-Length": "1001"}), 403, "quota-exceeded")
        path = await begin(client, 1000)
        assert (await send(client, path, 0, JPEG.ljust(1000, b"1"))).status_code == 204
        refused(await client.post(UPLOADS, headers={**TUS, "Upload-Length": "1"}), 403, "quota-exceeded")
    assert len(sink.sent) == 1


async def test_the_parts_of_an_upload_are_limited(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is an object: beyond the limit the client must create a new upload with larger parts."""
    monkeypatch.setattr("gateway.upload_sessions.store._MAX_PIECES", 3)
    path = await begin(client)
    for at in range(3):
        assert (await send(client, path, at, IMAGE[at : at + 1])).status_code == 204
    refused(await send(client, path, 3, IMAGE[3:4]), 400, "bad-request")
    assert await offset_of(client, path) == 3


async def test_a_store_that_returns_fewer_bytes_creates_no_image(
    client: httpx.AsyncClient, components: IngestComponents, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An incomplete read is 503, and the upload can be completed later."""

    async def truncated(*_args: object, **_more: object) -> AsyncIterator[bytes]:
        for chunk in (JPEG[:-1],):
            yield chunk

    path = await begin(client, len(JPEG))
    with monkeypatch.context() as changed:
        changed.setattr(components.files, "stream", truncated, raising=False)
        refused(await send(client, path, 0, JPEG), 503, "dependency-unavailable")
    assert not sink.sent
    assert (await client.head(path, headers=TUS)).headers["darkroom-job"] == sink.sent[0][1].job_id
