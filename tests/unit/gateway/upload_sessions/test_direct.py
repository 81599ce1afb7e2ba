"""Direct uploads: a form presigned for one object of a real MinIO, and an image on completion."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from fastapi import FastAPI, Request
from pydantic import SecretStr

from gateway.access.identity import Identity, Scope
from gateway.apps.components import IngestComponents
from gateway.apps.ingest import ingest_app
from gateway.limits.rate_limits import Limits
from gateway.limits.settings import RateLimitSettings
from infra.local.minio import LocalMinio
from schemas.events.intake import ImageUploaded
from schemas.http.resumable import DirectUploadForm, UploadState, UploadView
from schemas.http.submissions import Submitted
from schemas.values import Owner, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import ended_upload_key, staged_key, upload_key
from streams.object_store.protocol import delete_prefix
from streams.settings import FilesSettings
from tests.support.gateway_components import BASE, JPEG, FaultyFiles, Sink, StubReadiness, client_of, refused, settings

DIRECT = "/api/v1/uploads/direct"
ASKED = {"filename": "C:\\cat.jpg", "content_type": "image/jpeg", "size": len(JPEG)}


class ByName:
    """An authenticator that trusts the Authorization header."""

    async def identify(self, request: Request) -> Identity:
        owner = Owner(request.headers.get("authorization", "default"))
        return Identity(owner, frozenset(Scope), owner)


@pytest.fixture
def store(minio: LocalMinio) -> FilesSettings:
    """Settings of a separate bucket on a real MinIO."""
    return FilesSettings(
        endpoint=minio.endpoint,
        access_key=minio.access_key,
        secret_key=SecretStr(minio.secret_key),
        bucket=f"direct-{uuid.uuid4().hex[:8]}",
    )


@pytest.fixture
async def files(store: FilesSettings) -> AsyncIterator[FaultyFiles]:
    """The open object store, emptied afterwards."""
    async with open_files(store) as found:
        yield FaultyFiles(found)
        await delete_prefix(found, "")


@pytest.fixture
def sink() -> Sink:
    """The event sink."""
    return Sink()


@pytest.fixture
def app(files: Any, sink: Sink) -> FastAPI:
    """An ingest app."""
    components = IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=ByName())
    return ingest_app(settings(max_upload_bytes=100_000), components)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the app."""
    async with client_of(app) as found:
        yield found


async def begin(client: httpx.AsyncClient, **asked: object) -> DirectUploadForm:
    """Request a form."""
    answer = await client.post(DIRECT, json={**ASKED, **asked})
    assert answer.status_code == 201, answer.text
    return DirectUploadForm.model_validate_json(answer.content)


async def send(form: DirectUploadForm, data: bytes, *, fields: Mapping[str, str] | None = None) -> httpx.Response:
    """Post a file with a form, as a browser does."""
    async with httpx.AsyncClient() as browser:
        return await browser.post(form.url, data={**form.fields, **(fields or {})}, files={"file": ("x", data)})


def at(url: str) -> str:
    """Return the path of a URL of the gateway."""
    return url.removeprefix(BASE)


async def test_a_file_sent_straight_to_the_store_becomes_an_image(
    client: httpx.AsyncClient, files: FaultyFiles, store: FilesSettings, sink: Sink
) -> None:
    """The event has the requested fields, the original equals the bytes sent, and the staged object is removed."""
    fields = {"bucket": "pets", "metadata": {"n": 1}, "tags": ["a"], "category": "c", "lane": "bulk"}
    form = await begin(client, sha256=hashlib.sha256(JPEG).hexdigest(), **fields)
    assert form.max_bytes == len(JPEG)
    assert not sink.sent
    assert (await send(form, JPEG)).status_code == 204
    staged = await asyncio.to_thread(_seen_by_boto, store, form.fields["key"])
    assert staged == (len(JPEG), "image/jpeg")

    answer = await client.post(at(form.complete_url))
    assert answer.status_code == 202, answer.text
    job = Submitted.model_validate_json(answer.content)
    assert answer.headers["location"] == job.status_url == f"{BASE}/api/v1/images/jobs/{job.job_id}"
    event = sink.sent[0][1]
    assert isinstance(event, ImageUploaded)
    assert (event.job_id, event.filename, event.bucket) == (job.job_id, "cat.jpg", "pets")
    assert (event.context, event.tags, event.category, sink.bulk) == ({"n": 1}, ("a",), "c", [event])
    assert await files.get(event.original.key) == JPEG
    assert [found.key async for found in files.list("incoming/")] == []
    assert [found.key async for found in files.list("uploads/")] == []


def _seen_by_boto(store: FilesSettings, key: str) -> tuple[int, str]:
    """Return size and type of an object as boto3 reports them."""
    assert store.secret_key is not None
    s3 = boto3.client(
        "s3",
        endpoint_url=f"http://{store.endpoint}",
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key.get_secret_value(),
        region_name=store.region,
    )
    found = s3.head_object(Bucket=store.bucket, Key=key)
    return found["ContentLength"], found["ContentType"]


@pytest.mark.parametrize(
    ("data", "fields"),
    [
        (JPEG + b"1", {}),
        (JPEG[:-1], {}),
        (JPEG, {"Content-Type": "text/html"}),
        (JPEG, {"key": "originals/default/aa/bb"}),
        (JPEG, {"key": "incoming/mallory/x"}),
    ],
)
async def test_the_store_enforces_the_form(
    client: httpx.AsyncClient, files: FaultyFiles, data: bytes, fields: dict[str, str]
) -> None:
    """The store rejects another size, type or key, and completion reports that the file has not arrived."""
    form = await begin(client)
    assert (await send(form, data, fields=fields)).status_code in (400, 403)
    refused(await client.post(at(form.complete_url)), 409, "not-arrived")
    for root in ("incoming/", "originals/"):
        assert [found.key async for found in files.list(root)] == []


async def test_a_form_without_a_size_allows_up_to_the_upload_limit(client: httpx.AsyncClient) -> None:
    """From one byte to the general limit."""
    form = await begin(client, size=None)
    assert form.max_bytes == 100_000
    assert (await send(form, b"")).status_code == 400
    assert (await send(form, b"x" * 100_001)).status_code == 400
    assert (await send(form, JPEG)).status_code == 204
    assert (await client.post(at(form.complete_url))).status_code == 202


async def test_complete_is_idempotent(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """Also when the object was written again, or the gateway crashed before it stored the result."""
    form = await begin(client)
    record = await files.get(upload_key("default", form.upload_id))
    await send(form, JPEG)
    first = (await client.post(at(form.complete_url))).json()
    other = JPEG[:-1] + b"!"
    assert (await send(form, other)).status_code == 204
    assert (await client.post(at(form.complete_url))).json() == first
    await files.delete(ended_upload_key("default", form.upload_id))
    await files.put(upload_key("default", form.upload_id), record, content_type="application/json")
    assert (await client.post(at(form.complete_url))).json() == first
    assert {event.job_id for _, event in sink.sent} == {first["job_id"]}
    assert len(await files.receipts()) == 1


async def test_a_file_that_is_no_image_ends_the_upload(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """An HTML page sent as a JPEG is rejected, on repetition too, and removed."""
    page = b"<html>".ljust(len(JPEG))
    form = await begin(client)
    await send(form, page)
    for _ in range(2):
        refused(await client.post(at(form.complete_url)), 415, "unsupported-format")
    view = UploadView.model_validate_json((await client.get(at(form.status_url))).content)
    assert (view.state, view.job) == (UploadState.REFUSED, None)
    assert [found.key async for found in files.list("incoming/")] == []
    assert not sink.sent


async def test_a_file_with_another_digest_is_rejected(client: httpx.AsyncClient, sink: Sink) -> None:
    """The declared sha256 is compared with that of the file."""
    form = await begin(client, sha256="0" * 64)
    await send(form, JPEG)
    refused(await client.post(at(form.complete_url)), 400, "digest-mismatch")
    assert not sink.sent


async def test_while_kafka_is_unavailable_the_file_is_kept(client: httpx.AsyncClient, sink: Sink) -> None:
    """503, nothing is accepted, and completion succeeds once Kafka is available."""
    form = await begin(client)
    await send(form, JPEG)
    sink.unavailable = True
    refused(await client.post(at(form.complete_url)), 503, "dependency-unavailable")
    view = UploadView.model_validate_json((await client.get(at(form.status_url))).content)
    assert view.state is UploadState.RECEIVING
    sink.unavailable = False
    assert (await client.post(at(form.complete_url))).status_code == 202
    view = UploadView.model_validate_json((await client.get(at(form.status_url))).content)
    assert view.job is not None
    assert view.job.job_id == sink.sent[0][1].job_id


async def test_delete_aborts_a_direct_upload(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """The file is removed, and the upload is then 404."""
    form = await begin(client)
    await send(form, JPEG)
    assert (await client.delete(f"{DIRECT}/{form.upload_id}")).status_code == 204
    refused(await client.post(at(form.complete_url)), 404, "not-found")
    assert await files.stat(staged_key("default", form.upload_id)) is None


async def test_another_owners_direct_upload_is_not_found(client: httpx.AsyncClient) -> None:
    """Every method returns 404, as for an unknown id; the tus endpoints do too."""
    form = await begin(client)
    await send(form, JPEG)
    mallory = {"Authorization": "mallory"}
    for path in (at(form.complete_url), f"{DIRECT}/{new_image_id()}/complete"):
        refused(await client.post(path, headers=mallory), 404, "not-found")
    refused(await client.delete(f"{DIRECT}/{form.upload_id}", headers=mallory), 404, "not-found")
    refused(await client.get(at(form.status_url), headers=mallory), 404, "not-found")
    part = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    refused(await client.patch(at(form.status_url), headers=part, content=JPEG), 404, "not-found")


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"content_type": "text/html"}, 415, "unsupported-format"),
        ({"size": 100_001}, 413, "file-too-large"),
        ({"size": 0}, 422, "invalid-field"),
        ({"sha256": "x"}, 422, "invalid-field"),
        ({"bucket": "../x"}, 422, "invalid-field"),
        ({"metadata": {"a": "x" * 20_000}}, 400, "invalid-metadata"),
    ],
)
async def test_an_invalid_form_request_is_rejected(
    client: httpx.AsyncClient, files: FaultyFiles, asked: dict[str, object], status: int, code: str
) -> None:
    """A file that completion would reject gets no form."""
    refused(await client.post(DIRECT, json={**ASKED, **asked}), status, code)
    assert [found.key async for found in files.list("uploads/")] == []


async def test_a_form_counts_as_an_upload(files: Any, sink: Sink) -> None:
    """Requesting a form counts against the owner's rate limit; completion does not."""
    limits = Limits(RateLimitSettings(uploads="1/hour"))
    components = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
    async with client_of(ingest_app(settings(), components)) as client:
        form = await begin(client)
        refused(await client.post(DIRECT, json=ASKED), 429, "rate-limited")
        await send(form, JPEG)
        assert (await client.post(at(form.complete_url))).status_code == 202


async def test_an_object_store_in_a_folder_has_no_forms(tmp_path: Path, sink: Sink) -> None:
    """`direct-upload-unavailable` names the alternatives and does not count against the owner's rate limit."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        limits = Limits(RateLimitSettings(uploads="1/hour"))
        components = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
        async with client_of(ingest_app(settings(), components)) as client:
            for _ in range(2):
                problem = refused(await client.post(DIRECT, json=ASKED), 409, "direct-upload-unavailable")
            assert "/api/v1/images/upload" in problem.detail
            assert "/api/v1/uploads" in problem.detail
