"""Resumable uploads: tus 1.0.0 to the letter, and an image accepted once with the last byte."""

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
from gateway.upload_sessions.leases import LASTS_S, distributed_lease
from schemas.events.intake import ImageUploaded
from schemas.http.resumable import UploadState, UploadView
from schemas.values import Owner, new_image_id
from streams.errors import DeliveryUnconfirmed
from streams.object_store.factory import open_files
from streams.object_store.keys import finishing_prefix, image_key, pieces_prefix, upload_key
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings
from tests.support.gateway_components import BASE, JPEG, FaultyFiles, Sink, StubReadiness, client_of, refused, settings

UPLOADS = "/api/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PART = {**TUS, "Content-Type": "application/offset+octet-stream"}
NONE: Mapping[str, str] = {}
PIECE = 64 << 10
IMAGE = JPEG + bytes(range(256)) * 800  # more than three pieces of the settings below


class ByName:
    """An authenticator that takes a caller's word for who they are."""

    async def identify(self, request: Request) -> Identity:
        owner = Owner(request.headers.get("authorization", "default"))
        return Identity(owner, frozenset(Scope), owner)


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FaultyFiles]:
    """A real store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as store:
        yield FaultyFiles(store)


@pytest.fixture
def sink() -> Sink:
    """Where events go."""
    return Sink()


@pytest.fixture
def parts(files: Any, sink: Sink) -> IngestComponents:
    """The parts of a gateway."""
    return IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=ByName())


def gateway(parts: IngestComponents, **changes: object) -> FastAPI:
    """Return a gateway with small pieces."""
    return ingest_app(settings(piece_bytes=PIECE, max_upload_bytes=1_000_000, **changes), parts)


@pytest.fixture
def app(parts: IngestComponents) -> FastAPI:
    """A gateway."""
    return gateway(parts, max_unfinished_uploads=3)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with client_of(app) as found:
        yield found


def told(**said: str) -> dict[str, str]:
    """Return Upload-Metadata."""
    pairs = (f"{name} {base64.b64encode(value.encode()).decode()}" for name, value in said.items())
    return {"Upload-Metadata": ",".join(pairs)}


async def begin(client: httpx.AsyncClient, size: int = len(IMAGE), headers: Mapping[str, str] = NONE) -> str:
    """Begin an upload; return its path."""
    answer = await client.post(UPLOADS, headers={**TUS, "Upload-Length": str(size), **headers})
    assert answer.status_code == 201, answer.text
    return answer.headers["location"].removeprefix(BASE)


async def send(client: httpx.AsyncClient, path: str, offset: int, data: bytes, **headers: str) -> httpx.Response:
    """Send a part."""
    return await client.patch(path, headers={**PART, "Upload-Offset": str(offset), **headers}, content=data)


async def offset_of(client: httpx.AsyncClient, path: str) -> int:
    """Return how much has come."""
    answer = await client.head(path, headers=TUS)
    assert answer.status_code == 200
    return int(answer.headers["upload-offset"])


async def kept(files: FileStore, prefix: str) -> list[str]:
    """Return the keys under a prefix."""
    return [found.key async for found in files.list(prefix)]


async def cut_off(app: FastAPI, path: str, offset: int, data: bytes) -> int:
    """Send this much of a part of which more was announced, then lose the connection; return what would be said."""
    messages: list[dict[str, Any]] = [
        {"type": "http.request", "body": data[at : at + 10_000], "more_body": True}
        for at in range(0, len(data), 10_000)
    ]
    messages.append({"type": "http.disconnect"})
    said: list[int] = []

    async def send(message: Any) -> None:
        said.append(message.get("status", 0))

    async def receive() -> Any:
        return messages.pop(0)

    headers = {**PART, "Upload-Offset": str(offset), "Content-Length": str(len(data) + 1)}
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "PATCH", "path": path, "query_string": b"", "headers": raw, "root_path": ""}
    await app({**scope, "http_version": "1.1", "scheme": "http", "server": ("darkroom.test", 80)}, receive, send)
    return said[0]


async def test_what_is_spoken_is_told_to_whoever_asks(client: httpx.AsyncClient) -> None:
    """OPTIONS needs no version and names extensions, algorithms and the largest file."""
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
    """Part by part the offset grows; the last answer names the job, and the original is what was sent."""
    path = await begin(client, headers=told(filename="../cat.jpg", bucket="pets", tags="a,b", metadata='{"n": 1}'))
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
    assert [await kept(files, root) for root in ("uploads/", "pieces/", "finishing/")] == [[], [], []]


async def test_a_head_tells_all_that_is_needed_to_go_on(client: httpx.AsyncClient) -> None:
    """Offset, length, the metadata as it was sent, and until when; nobody may cache it."""
    said = told(filename="cat.jpg")
    path = await begin(client, headers=said)
    await send(client, path, 0, IMAGE[:1000])
    answer = await client.head(path, headers=TUS)
    assert answer.headers["upload-offset"] == "1000"
    assert answer.headers["upload-length"] == str(len(IMAGE))
    assert answer.headers["upload-metadata"] == said["Upload-Metadata"]
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["tus-resumable"] == "1.0.0"
    left = parsedate_to_datetime(answer.headers["upload-expires"]) - datetime.now(UTC)
    assert timedelta(hours=23) < left <= timedelta(hours=24)


@pytest.mark.parametrize("version", [None, "0.2.2", "2.0.0"])
@pytest.mark.parametrize("method", ["POST", "HEAD", "PATCH", "DELETE"])
async def test_another_version_of_the_protocol_is_refused(
    client: httpx.AsyncClient, method: str, version: str | None
) -> None:
    """412 with the version that is spoken, and nothing else is done."""
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
        ({"Upload-Length": "10", **told(colour="red")}, 400, "unknown-field"),
        ({"Upload-Length": "10", **told(metadata="[]")}, 400, "invalid-metadata"),
        ({"Upload-Length": "10", **told(metadata="x" * 40_000)}, 400, "invalid-metadata"),
        ({"Upload-Length": "10", **told(bucket="../x")}, 400, "invalid-bucket"),
        ({"Upload-Length": "10", **told(lane="fast")}, 422, "invalid-field"),
    ],
)
async def test_a_beginning_that_cannot_be_understood_is_refused(
    client: httpx.AsyncClient, files: FaultyFiles, headers: dict[str, str], status: int, code: str
) -> None:
    """A length that is none, too much, twice or zero, and metadata nobody can read: nothing is begun."""
    answer = await client.post(UPLOADS, headers={**TUS, **headers})
    refused(answer, status, code)
    assert answer.headers["tus-resumable"] == "1.0.0"
    assert await kept(files, "uploads/") == []


async def test_what_clients_say_of_a_file_is_no_unknown_field(client: httpx.AsyncClient, sink: Sink) -> None:
    """Names that well-known clients send are let in, an empty header too; the name is the file's."""
    path = await begin(client, len(JPEG), told(name="a.jpg", type="text/html", relativePath="x/y"))
    await send(client, path, 0, JPEG)
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert (event.filename, event.original.content_type) == ("a.jpg", "image/jpeg")
    await begin(client, headers={"Upload-Metadata": ""})


async def test_the_first_bytes_may_come_with_the_beginning(client: httpx.AsyncClient, sink: Sink) -> None:
    """Some of them, or all: then the image is accepted at once."""
    headers = {**PART, "Upload-Length": str(len(IMAGE))}
    answer = await client.post(UPLOADS, headers=headers, content=IMAGE[:70_000])
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "70000")
    assert await offset_of(client, answer.headers["location"]) == 70_000
    answer = await client.post(UPLOADS, headers=headers, content=IMAGE)
    assert (answer.status_code, answer.headers["darkroom-job"]) == (201, sink.sent[0][1].job_id)
    refused(
        await client.post(UPLOADS, headers={**TUS, "Upload-Length": "9"}, content=b"x"), 415, "unsupported-media-type"
    )


async def test_the_length_may_be_said_later_and_only_once(client: httpx.AsyncClient, sink: Sink) -> None:
    """Until it is said, HEAD says that it is not; said otherwise it is refused."""
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


async def test_a_part_that_belongs_elsewhere_is_refused(client: httpx.AsyncClient) -> None:
    """409 with the offset at which it goes on; what is no offset is 400, another media type 415."""
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


async def test_more_than_the_file_has_is_refused(client: httpx.AsyncClient) -> None:
    """By its announced length before it is read, else at the byte that is one too many."""

    async def drip() -> AsyncIterator[bytes]:
        for _ in range(4):
            yield IMAGE[:300]

    path = await begin(client, 1000)
    refused(await send(client, path, 0, IMAGE[:1001]), 413, "file-too-large")
    answer = await client.patch(path, headers={**PART, "Upload-Offset": "0"}, content=drip())
    refused(answer, 413, "file-too-large")
    assert await offset_of(client, path) == 0


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
async def test_a_part_is_checked_against_its_checksum(
    client: httpx.AsyncClient, files: FaultyFiles, algorithm: str
) -> None:
    """A match is kept; 460 leaves no trace of a part, however many pieces it had."""

    def checksum(data: bytes) -> dict[str, str]:
        digest = base64.b64encode(hashlib.new(algorithm, data).digest()).decode()
        return {"Upload-Checksum": f"{algorithm} {digest}"}

    path = await begin(client)
    refused(await send(client, path, 0, IMAGE[:150_000], **checksum(IMAGE[1:150_001])), 460, "checksum-mismatch")
    assert await kept(files, "pieces/") == []
    assert (await send(client, path, 0, IMAGE[:150_000], **checksum(IMAGE[:150_000]))).status_code == 204
    assert await offset_of(client, path) == 150_000


@pytest.mark.parametrize("said", ["md5 1B2M2Y8AsgTpgAmY7PhCfg==", "sha1", "sha1 !!!", "", "sha256 ü"])
async def test_a_checksum_that_cannot_be_checked_is_refused(client: httpx.AsyncClient, said: str) -> None:
    """An algorithm that is not announced, or no Base64: 400, and nothing is kept."""
    path = await begin(client)
    headers = {**PART, "Upload-Offset": "0", "Upload-Checksum": said.encode()}
    answer = await client.patch(path, headers=headers, content=IMAGE[:100])  # type: ignore[arg-type]
    refused(answer, 400, "invalid-digest")
    assert await offset_of(client, path) == 0


async def test_what_arrived_before_the_connection_broke_is_kept(
    client: httpx.AsyncClient, app: FastAPI, sink: Sink
) -> None:
    """To the byte, also of a piece that was not full; the client goes on there, and the image is whole."""
    path = await begin(client)
    assert await cut_off(app, path, 0, IMAGE[:100_001]) == 400
    assert await offset_of(client, path) == 100_001
    await send(client, path, 100_001, IMAGE[100_001:])
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert event.original.sha256 == hashlib.sha256(IMAGE).hexdigest()


async def test_another_gateway_goes_on_with_an_upload(
    client: httpx.AsyncClient, parts: IngestComponents, sink: Sink
) -> None:
    """Nothing of an upload is in a gateway's memory: any other knows it and finishes it."""
    path = await begin(client)
    await send(client, path, 0, IMAGE[:70_000])
    async with client_of(gateway(parts)) as other:
        assert await offset_of(other, path) == 70_000
        answer = await send(other, path, 70_000, IMAGE[70_000:])
    assert answer.headers["darkroom-job"] == sink.sent[0][1].job_id
    assert (await client.head(path, headers=TUS)).headers["darkroom-job"] == sink.sent[0][1].job_id


async def test_a_client_that_comes_back_need_not_wait_for_its_dead_connection(client: httpx.AsyncClient) -> None:
    """A part whose client is silent is ended, and kept, as soon as another request comes for the upload."""
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


async def test_a_client_that_falls_silent_keeps_what_it_sent(parts: IngestComponents) -> None:
    """408 after the limit, with the offset that was reached."""

    async def stalled() -> AsyncIterator[bytes]:
        yield IMAGE[:1234]
        await asyncio.Event().wait()

    async with client_of(gateway(parts, upload_idle_s=0.05)) as client:
        path = await begin(client)
        answer = await client.patch(path, headers={**PART, "Upload-Offset": "0"}, content=stalled())
        refused(answer, 408, "upload-too-slow")
        assert answer.headers["upload-offset"] == "1234"
        assert await offset_of(client, path) == 1234


async def test_of_two_parts_for_the_same_place_one_is_kept(parts: IngestComponents, files: FaultyFiles) -> None:
    """Two gateways given other bytes at the same offset: one is refused, and nothing is mixed."""
    async with client_of(gateway(parts)) as one, client_of(gateway(parts)) as other:
        path = await begin(one)
        parts_sent = [JPEG + b"1" * 10_000, JPEG + b"2" * 10_000]
        answers = await asyncio.gather(
            *(send(at, path, 0, sent) for at, sent in zip((one, other), parts_sent, strict=True))
        )
        assert sorted(answer.status_code for answer in answers) == [204, 409]
        winner = parts_sent[[answer.status_code for answer in answers].index(204)]
        (key,) = await kept(files, "pieces/")
        assert await files.get(key) == winner
        assert await offset_of(one, path) == len(winner)


async def test_a_lost_answer_is_given_again_and_makes_no_second_image(client: httpx.AsyncClient, sink: Sink) -> None:
    """HEAD, a repeated last PATCH and GET all say the job of the one image there is."""
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


async def test_while_kafka_is_away_no_client_hears_that_all_bytes_are_there(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """The last part is answered 503, and so is a HEAD, until one of them has accepted the image."""
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


async def test_an_image_disowned_for_kafkas_silence_is_replaced_by_another(
    client: httpx.AsyncClient, parts: IngestComponents, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The image whose event Kafka may have all the same stays deleted; the upload ends as a new one."""

    async def silent(*_args: object, **_more: object) -> None:
        raise DeliveryUnconfirmed("no answer")

    path = await begin(client, len(JPEG))
    with monkeypatch.context() as changed:
        changed.setattr(sink, "send", silent)
        refused(await send(client, path, 0, JPEG), 503, "dependency-unavailable")
    (disowned,) = [key.removeprefix("erasures/").removesuffix(".json") for key in await kept(parts.files, "erasures/")]
    await client.head(path, headers=TUS)
    assert len(sink.sent) == 1
    assert sink.sent[0][1].image_id != disowned


async def test_a_gateway_killed_before_it_noted_the_end_makes_no_second_image(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """The next one finds the receipt under the image's id, decided at the beginning, and says the same job."""
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


async def test_while_another_gateway_finishes_an_upload_it_is_busy(
    client: httpx.AsyncClient, files: FaultyFiles
) -> None:
    """423 and when to come back: two that both made the image might undo each other's work."""
    path = await begin(client, len(JPEG))
    async with distributed_lease(files, finishing_prefix("default", path.rsplit("/", 1)[-1])):
        answer = await send(client, path, 0, JPEG)
        refused(answer, 423, "upload-busy")
        assert answer.headers["retry-after"] == "5"
    assert (await client.head(path, headers=TUS)).headers["darkroom-job"]


async def test_the_turn_of_a_gateway_that_died_is_over_after_a_while(files: FaultyFiles) -> None:
    """Until then nobody else gets it, and then one does."""
    prefix, now = finishing_prefix("default", new_image_id()), 1000.0
    await files.put(f"{prefix}000001", f"{now + LASTS_S}".encode(), content_type="text/plain")
    with pytest.raises(Problem, match="at work"):
        async with distributed_lease(files, prefix, clock=lambda: now):
            raise AssertionError("nobody may get here")
    async with distributed_lease(files, prefix, clock=lambda: now + LASTS_S):
        with pytest.raises(Problem, match="at work"):
            async with distributed_lease(files, prefix, clock=lambda: now + LASTS_S):
                raise AssertionError("nobody may get here")


async def test_what_is_no_image_is_refused_with_its_first_piece(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """415 at once, nothing is kept of it, and whoever asks again hears why."""
    path = await begin(client, headers=told(filename="evil.jpg"))
    refused(await send(client, path, 0, b"<html>" * 100), 415, "unsupported-format")
    refused(await send(client, path, 0, IMAGE), 415, "unsupported-format")
    assert (await client.head(path, headers=TUS)).status_code == 415
    view = UploadView.model_validate_json((await client.get(path)).content)
    assert (view.state, view.job) == (UploadState.REFUSED, None)
    assert view.error is not None
    assert view.error.code == "unsupported-format"
    assert [await kept(files, root) for root in ("uploads/", "pieces/")] == [[], []]
    assert not sink.sent


async def test_what_is_no_image_is_refused_also_if_it_comes_byte_by_byte(client: httpx.AsyncClient, sink: Sink) -> None:
    """Parts too short to tell are kept; the whole is looked at once more."""
    path = await begin(client, 70)
    for at in range(0, 70, 35):
        answer = await send(client, path, at, b"<html>" * 5 + b"12345")
    refused(answer, 415, "unsupported-format")
    assert not sink.sent


async def test_an_upload_can_be_given_up(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """DELETE removes all that came, and the upload is not known any more."""
    path = await begin(client)
    await send(client, path, 0, IMAGE[:100])
    assert (await client.delete(path, headers=TUS)).status_code == 204
    assert (await client.head(path, headers=TUS)).status_code == 404
    refused(await send(client, path, 100, IMAGE[100:]), 404, "not-found")
    assert [await kept(files, root) for root in ("uploads/", "pieces/")] == [[], []]


async def test_giving_up_what_was_accepted_leaves_the_image(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """The image has an owner by then; only the upload is forgotten."""
    path = await begin(client, len(JPEG))
    await send(client, path, 0, JPEG)
    assert (await client.delete(path, headers=TUS)).status_code == 204
    refused(await client.get(path), 404, "not-found")
    assert len(await files.receipts()) == 1


async def test_an_upload_is_over_when_its_time_is(parts: IngestComponents) -> None:
    """410 to whoever goes on, and to whoever asks."""
    async with client_of(gateway(parts, upload_expires_s=0.001)) as client:
        path = await begin(client)
        await asyncio.sleep(1.1)  # times are said in seconds
        refused(await send(client, path, 0, IMAGE), 410, "upload-expired")
        refused(await client.get(path), 410, "upload-expired")
        assert (await client.head(path, headers=TUS)).status_code == 410


async def test_another_owners_upload_is_not_there(client: httpx.AsyncClient) -> None:
    """404 for everything that can be done, as for an id that never was, or is none."""
    path = await begin(client)
    mallory = {"Authorization": "mallory"}
    for at in (path, f"{UPLOADS}/{new_image_id()}", f"{UPLOADS}/..%2Fdefault", f"{UPLOADS}/x"):
        assert (await client.head(at, headers={**TUS, **mallory})).status_code == 404
        refused(await client.get(at, headers=mallory), 404, "not-found")
        refused(await send(client, at, 0, JPEG, **mallory), 404, "not-found")
        refused(await client.delete(at, headers={**TUS, **mallory}), 404, "not-found")
    assert await offset_of(client, path) == 0


async def test_an_owner_may_begin_so_many_uploads_and_no_more(client: httpx.AsyncClient) -> None:
    """429 until one is finished or given up; other owners are not concerned."""
    paths = [await begin(client) for _ in range(3)]
    headers = {**TUS, "Upload-Length": "10"}
    refused(await client.post(UPLOADS, headers=headers), 429, "too-many-uploads")
    await begin(client, headers={"Authorization": "another"})
    await client.delete(paths[0], headers=TUS)
    await begin(client)


async def test_beginning_an_upload_counts_as_an_upload(files: Any, sink: Sink) -> None:
    """The owner's limit holds for it, and only for its beginning."""
    limits = Limits(RateLimitSettings(uploads="1/hour"))
    parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
    async with client_of(gateway(parts)) as client:
        path = await begin(client)
        for at in range(0, 300, 100):
            assert (await send(client, path, at, IMAGE[at : at + 100])).status_code == 204
        refused(await client.post(UPLOADS, headers={**TUS, "Upload-Length": "10"}), 429, "rate-limited")


async def test_a_store_that_is_away_is_said_so_and_nothing_is_lost(
    client: httpx.AsyncClient, files: FaultyFiles
) -> None:
    """503 with the protocol's header, and the upload goes on where it was."""
    path = await begin(client)
    await send(client, path, 0, IMAGE[:1000])
    files.unavailable = True
    answer = await send(client, path, 1000, IMAGE[1000:])
    refused(answer, 503, "dependency-unavailable")
    assert answer.headers["tus-resumable"] == "1.0.0"
    files.unavailable = False
    assert await offset_of(client, path) == 1000


async def test_bytes_that_were_handed_in_before_may_end_as_that_image(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """`on_duplicate=reuse` holds for an upload in parts: no second image, and the first one's job is said."""
    first = await begin(client, len(JPEG))
    job = (await send(client, first, 0, JPEG)).headers["darkroom-job"]
    image_id = sink.sent[0][1].image_id
    await files.put(image_key(image_id, 1, "master.webp"), b"x", content_type="image/webp")  # an agent is at it
    second = await begin(client, len(JPEG), told(on_duplicate="reuse"))
    assert (await send(client, second, 0, JPEG)).headers["darkroom-job"] == job
    view = UploadView.model_validate_json((await client.get(second)).content)
    assert view.job is not None
    assert (view.job.image_id, view.job.duplicate) == (image_id, True)
    assert len(sink.sent) == 1


async def test_a_method_may_be_said_in_a_header(client: httpx.AsyncClient, sink: Sink) -> None:
    """Where only POST comes through, X-HTTP-Method-Override names what is meant; without it there is no POST."""
    path = await begin(client, len(JPEG))
    headers = {**PART, "Upload-Offset": "0", "X-HTTP-Method-Override": "PATCH"}
    answer = await client.post(path, headers=headers, content=JPEG)
    assert (answer.status_code, answer.headers["darkroom-job"]) == (204, sink.sent[0][1].job_id)
    answer = await client.post(path, headers={**TUS, "X-HTTP-Method-Override": "HEAD"})
    assert (answer.status_code, answer.headers["upload-offset"]) == (200, str(len(JPEG)))
    for said in ({}, {"X-HTTP-Method-Override": "TRACE"}):
        answer = await client.post(path, headers={**TUS, **said})
        refused(answer, 405, "method-not-allowed")
        assert "PATCH" in answer.headers["allow"]
    assert (await client.post(path, headers={**TUS, "X-HTTP-Method-Override": "DELETE"})).status_code == 204
    refused(await client.get(path), 404, "not-found")


async def test_without_room_for_the_image_no_byte_is_sent(files: Any, sink: Sink) -> None:
    """The owner's quota is looked at when an upload begins, and again when it ends."""
    quotas = Quotas(QuotaSettings(bytes=1000), files)
    parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), quotas=quotas)
    async with client_of(gateway(parts)) as client:
        refused(await client.post(UPLOADS, headers={**TUS, "Upload-Length": "1001"}), 403, "quota-exceeded")
        path = await begin(client, 1000)
        assert (await send(client, path, 0, JPEG.ljust(1000, b"1"))).status_code == 204
        refused(await client.post(UPLOADS, headers={**TUS, "Upload-Length": "1"}), 403, "quota-exceeded")
    assert len(sink.sent) == 1


async def test_an_upload_in_crumbs_is_refused(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is an object: beyond a number of them the client must begin anew with larger ones."""
    monkeypatch.setattr("gateway.upload_sessions.store._MAX_PIECES", 3)
    path = await begin(client)
    for at in range(3):
        assert (await send(client, path, at, IMAGE[at : at + 1])).status_code == 204
    refused(await send(client, path, 3, IMAGE[3:4]), 400, "bad-request")
    assert await offset_of(client, path) == 3


async def test_a_store_that_gives_back_less_than_it_took_makes_no_image(
    client: httpx.AsyncClient, parts: IngestComponents, sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image is made of all the bytes there are to it, or the answer is 503 and the upload goes on later."""

    async def nothing(*_args: object, **_more: object) -> AsyncIterator[bytes]:
        for chunk in (JPEG[:-1],):
            yield chunk

    path = await begin(client, len(JPEG))
    with monkeypatch.context() as changed:
        changed.setattr(parts.files, "stream", nothing, raising=False)
        refused(await send(client, path, 0, JPEG), 503, "dependency-unavailable")
    assert not sink.sent
    assert (await client.head(path, headers=TUS)).headers["darkroom-job"] == sink.sent[0][1].job_id
