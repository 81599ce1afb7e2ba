"""Direct uploads: a form signed for one object of a real MinIO, and an image when the client says it is there."""

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
    """An authenticator that takes a caller's word for who they are."""

    async def identify(self, request: Request) -> Identity:
        owner = Owner(request.headers.get("authorization", "default"))
        return Identity(owner, frozenset(Scope), owner)


@pytest.fixture
def store(minio: LocalMinio) -> FilesSettings:
    """Settings of a bucket of our own on a real MinIO."""
    return FilesSettings(
        endpoint=minio.endpoint,
        access_key=minio.access_key,
        secret_key=SecretStr(minio.secret_key),
        bucket=f"direct-{uuid.uuid4().hex[:8]}",
    )


@pytest.fixture
async def files(store: FilesSettings) -> AsyncIterator[FaultyFiles]:
    """The store, open, and empty in the end."""
    async with open_files(store) as found:
        yield FaultyFiles(found)
        await delete_prefix(found, "")


@pytest.fixture
def sink() -> Sink:
    """Where events go."""
    return Sink()


@pytest.fixture
def app(files: Any, sink: Sink) -> FastAPI:
    """A gateway."""
    parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=ByName())
    return ingest_app(settings(max_upload_bytes=100_000), parts)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of it."""
    async with client_of(app) as found:
        yield found


async def begin(client: httpx.AsyncClient, **asked: object) -> DirectUploadForm:
    """Ask for a form."""
    answer = await client.post(DIRECT, json={**ASKED, **asked})
    assert answer.status_code == 201, answer.text
    return DirectUploadForm.model_validate_json(answer.content)


async def send(form: DirectUploadForm, data: bytes, *, fields: Mapping[str, str] | None = None) -> httpx.Response:
    """Send a file by a form, as a browser does."""
    async with httpx.AsyncClient() as browser:
        return await browser.post(form.url, data={**form.fields, **(fields or {})}, files={"file": ("x", data)})


def at(url: str) -> str:
    """Return the path of a URL of the gateway."""
    return url.removeprefix(BASE)


async def test_a_file_sent_straight_to_the_store_becomes_an_image(
    client: httpx.AsyncClient, files: FaultyFiles, store: FilesSettings, sink: Sink
) -> None:
    """The event says what was asked for, the original is what was sent, and nothing is left staged."""
    said = {"bucket": "pets", "metadata": {"n": 1}, "tags": ["a"], "category": "c", "lane": "bulk"}
    form = await begin(client, sha256=hashlib.sha256(JPEG).hexdigest(), **said)
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
    """Return size and type of an object as the SDK of S3's makers sees it."""
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
async def test_the_store_takes_by_a_form_only_what_it_is_for(
    client: httpx.AsyncClient, files: FaultyFiles, data: bytes, fields: dict[str, str]
) -> None:
    """Another size, type or place is refused by the store itself, and the upload has not arrived."""
    form = await begin(client)
    assert (await send(form, data, fields=fields)).status_code in (400, 403)
    refused(await client.post(at(form.complete_url)), 409, "not-arrived")
    for root in ("incoming/", "originals/"):
        assert [found.key async for found in files.list(root)] == []


async def test_a_file_of_unknown_size_may_have_as_many_bytes_as_any(client: httpx.AsyncClient) -> None:
    """From one byte to the limit of all uploads."""
    form = await begin(client, size=None)
    assert form.max_bytes == 100_000
    assert (await send(form, b"")).status_code == 400
    assert (await send(form, b"x" * 100_001)).status_code == 400
    assert (await send(form, JPEG)).status_code == 204
    assert (await client.post(at(form.complete_url))).status_code == 202


async def test_complete_says_the_same_again_and_makes_no_second_image(
    client: httpx.AsyncClient, files: FaultyFiles, sink: Sink
) -> None:
    """Also when the object was written again, or the gateway died before it noted what it had done."""
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


async def test_what_is_no_image_ends_the_upload(client: httpx.AsyncClient, files: FaultyFiles, sink: Sink) -> None:
    """A page that calls itself a JPEG is refused, said so again, and removed."""
    page = b"<html>".ljust(len(JPEG))
    form = await begin(client)
    await send(form, page)
    for _ in range(2):
        refused(await client.post(at(form.complete_url)), 415, "unsupported-format")
    view = UploadView.model_validate_json((await client.get(at(form.status_url))).content)
    assert (view.state, view.job) == (UploadState.REFUSED, None)
    assert [found.key async for found in files.list("incoming/")] == []
    assert not sink.sent


async def test_another_file_than_was_said_is_refused(client: httpx.AsyncClient, sink: Sink) -> None:
    """The sha256 that was said at the beginning is held against what came."""
    form = await begin(client, sha256="0" * 64)
    await send(form, JPEG)
    refused(await client.post(at(form.complete_url)), 400, "digest-mismatch")
    assert not sink.sent


async def test_while_kafka_is_away_the_file_waits(client: httpx.AsyncClient, sink: Sink) -> None:
    """503, nothing is accepted, and complete works when it is back."""
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


async def test_a_direct_upload_can_be_given_up(client: httpx.AsyncClient, files: FaultyFiles) -> None:
    """What was sent goes; the upload is not known any more, to any way of asking."""
    form = await begin(client)
    await send(form, JPEG)
    assert (await client.delete(f"{DIRECT}/{form.upload_id}")).status_code == 204
    refused(await client.post(at(form.complete_url)), 404, "not-found")
    assert await files.stat(staged_key("default", form.upload_id)) is None


async def test_another_owners_direct_upload_is_not_there(client: httpx.AsyncClient) -> None:
    """404 for everything, as for one that never was; nor is it a resumable one."""
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
async def test_a_wish_that_cannot_be_granted_is_refused(
    client: httpx.AsyncClient, files: FaultyFiles, asked: dict[str, object], status: int, code: str
) -> None:
    """No form is given for what would be refused later anyway."""
    refused(await client.post(DIRECT, json={**ASKED, **asked}), status, code)
    assert [found.key async for found in files.list("uploads/")] == []


async def test_a_form_counts_as_an_upload(files: Any, sink: Sink) -> None:
    """The owner's limit holds for beginning, and completing takes nothing more."""
    limits = Limits(RateLimitSettings(uploads="1/hour"))
    parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
    async with client_of(ingest_app(settings(), parts)) as client:
        form = await begin(client)
        refused(await client.post(DIRECT, json=ASKED), 429, "rate-limited")
        await send(form, JPEG)
        assert (await client.post(at(form.complete_url))).status_code == 202


async def test_a_folder_has_no_forms_and_the_refusal_says_what_to_do(tmp_path: Path, sink: Sink) -> None:
    """`direct-upload-unavailable` names the other ways in, and takes nothing of the owner's limit."""
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        limits = Limits(RateLimitSettings(uploads="1/hour"))
        parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), limits=limits)
        async with client_of(ingest_app(settings(), parts)) as client:
            for _ in range(2):
                problem = refused(await client.post(DIRECT, json=ASKED), 409, "direct-upload-unavailable")
            assert "/api/v1/images/upload" in problem.detail
            assert "/api/v1/uploads" in problem.detail
