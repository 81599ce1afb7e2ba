"""Duplicates: found before the upload, or returned with `on_duplicate=reuse`."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.access.identity import Identity, Scope
from gateway.apps.components import IngestComponents, QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.apps.ingest import ingest_app
from schemas.values import ImageState, ObjectRef, Owner, job_id_of
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, original_key
from streams.object_store.original_references import add_reference
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import (
    JPEG,
    UPLOAD,
    FaultyFiles,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
)

SHA = hashlib.sha256(JPEG).hexdigest()
KNOWN = f"/api/v1/images/by-digest/{SHA}"


class Named:
    """An authenticator that trusts the x-owner header."""

    async def identify(self, request: Any) -> Identity:
        return Identity(Owner(request.headers.get("x-owner", "default")), frozenset(Scope), "test")


@dataclass
class Server:
    """The embedded app and the ingest app, on the same store."""

    files: FaultyFiles
    read_model: ReadModel
    sink: Sink
    client: httpx.AsyncClient
    alone: httpx.AsyncClient

    async def record(self, image_id: str, state: ImageState, **more: Any) -> None:
        """Record an image as the indexer does."""
        ref = ObjectRef(bucket="darkroom", key=original_key("default", SHA), sha256=SHA, size=len(JPEG))
        known = {"image_id": image_id, "owner": "default", "generation": 1, "state": state, "original": ref}
        await self.read_model.begin(ImageRecord.model_validate(known | more))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    async with (
        open_files(FilesSettings(directory=tmp_path / "files")) as store,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        files, sink = FaultyFiles(store), Sink()
        components = IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=Named())
        whole = QueryComponents(
            files=files, events=sink, readiness=StubReadiness(), authenticator=Named(), read_model=read_model
        )
        async with (
            client_of(embedded_app(settings(), whole)) as client,
            client_of(ingest_app(settings(), components)) as alone,
        ):
            yield Server(files, read_model, sink, client, alone)


async def upload(client: httpx.AsyncClient, how: str | None = None, **headers: str) -> httpx.Response:
    data = {} if how is None else {"on_duplicate": how}
    return await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, data=data, headers=headers)


async def test_an_image_is_found_by_its_digest(server: Server) -> None:
    """GET by SHA-256 returns the image of these bytes, HEAD no body; in the ingest app as well."""
    for client in (server.client, server.alone):
        refused(await client.get(f"/api/v1/images/by-digest/{'0' * 64}"), 404, "not-found")
    image = (await upload(server.client)).json()
    for client in (server.client, server.alone):
        for path in (KNOWN, KNOWN.replace(SHA, SHA.upper())):
            found = await client.get(path)
            assert found.status_code == 200
            assert {name: found.json()[name] for name in ("image_id", "job_id", "sha256", "status_url")} == {
                "image_id": image["image_id"],
                "job_id": image["job_id"],
                "sha256": SHA,
                "status_url": image["status_url"],
            }
        assert (await client.head(KNOWN)).status_code == 200
        refused(await client.get("/api/v1/images/by-digest/abc"), 400, "invalid-digest")


async def test_only_the_embedded_app_returns_the_state(server: Server) -> None:
    """The embedded app returns the image's state; the ingest app, without a read model, omits it."""
    image_id = (await upload(server.client)).json()["image_id"]
    assert (await server.client.get(KNOWN)).json()["status"] == "processing"
    await server.record(image_id, ImageState.REJECTED)
    assert (await server.client.get(KNOWN)).json()["status"] == "rejected"
    assert "status" not in (await server.alone.get(KNOWN)).json()


async def test_the_newest_image_that_is_not_deleted_is_returned(server: Server) -> None:
    """The newest of several images of the same bytes is returned; after its deletion the previous one."""
    first, second = [(await upload(server.client)).json()["image_id"] for _ in range(2)]
    assert (await server.client.get(KNOWN)).json()["image_id"] == second
    assert (await server.client.delete(f"/api/v1/images/{second}")).status_code == 202
    for client in (server.client, server.alone):
        assert (await client.get(KNOWN)).json()["image_id"] == first
    assert (await server.client.delete(f"/api/v1/images/{first}")).status_code == 202
    for client in (server.client, server.alone):
        refused(await client.get(KNOWN), 404, "not-found")


async def test_another_owners_bytes_are_not_found(server: Server) -> None:
    """Another owner gets 404 for these bytes, and with reuse a new image."""
    mine = (await upload(server.client)).json()["image_id"]
    for client in (server.client, server.alone):
        refused(await client.get(KNOWN, headers={"x-owner": "eve"}), 404, "not-found")
    theirs = await upload(server.client, "reuse", **{"x-owner": "eve"})
    assert theirs.status_code == 202
    assert theirs.json()["image_id"] != mine


async def test_a_reference_without_a_receipt_is_no_image(server: Server) -> None:
    """A reference left by a crashed gateway, without a receipt, is no image."""
    await add_reference(server.files, "default", SHA, "01900000-0000-7000-8000-000000000001")
    for client in (server.client, server.alone):
        refused(await client.get(KNOWN), 404, "not-found")


async def test_a_master_is_no_original(server: Server) -> None:
    """An image whose master, but not original, has these bytes is not returned."""
    image_id = (await upload(server.client)).json()["image_id"]
    other = hashlib.sha256(b"the master").hexdigest()
    await add_reference(server.files, "default", other, image_id)
    for client in (server.client, server.alone):
        refused(await client.get(f"/api/v1/images/by-digest/{other}"), 404, "not-found")


async def test_reuse_returns_the_existing_image(server: Server) -> None:
    """With on_duplicate=reuse the second upload is 200 with the first image, marked as duplicate; no event is sent."""
    first = (await upload(server.client)).json()
    again = await upload(server.client, "reuse")
    assert again.status_code == 200
    assert again.json() == first | {"duplicate": True}
    assert len(server.sink.sent) == 1
    assert len(await server.files.receipts()) == 1


async def test_by_default_the_same_bytes_are_a_new_image(server: Server) -> None:
    """By default, and with on_duplicate=new, every upload is a new image."""
    ids = {(await upload(server.client, how)).json()["image_id"] for how in (None, "new", None)}
    assert len(ids) == 3
    refused(await upload(server.client, "maybe"), 422, "invalid-field")


@pytest.mark.parametrize("state", [ImageState.REJECTED, ImageState.FAILED])
async def test_a_rejected_or_failed_image_is_not_reused(server: Server, state: ImageState) -> None:
    """Bytes of a rejected or failed image become a new image; an older usable image of them is preferred."""
    first = (await upload(server.client)).json()["image_id"]
    await server.record(first, state)
    second = await upload(server.client, "reuse")
    assert second.status_code == 202
    await server.record(second.json()["image_id"], ImageState.COMPLETED)
    third = (await upload(server.client)).json()["image_id"]
    await server.record(third, state)
    again = await upload(server.client, "reuse")
    assert (again.status_code, again.json()["image_id"]) == (200, second.json()["image_id"])
    assert again.json()["status"] == "completed"


async def test_a_deleted_image_is_not_reused(server: Server) -> None:
    """An image is not reusable once its deletion is accepted."""
    first = (await upload(server.client)).json()["image_id"]
    assert (await server.client.delete(f"/api/v1/images/{first}")).status_code == 202
    assert (await upload(server.client, "reuse")).status_code == 202


async def test_a_receipt_alone_is_not_reused(server: Server) -> None:
    """An image that another gateway is still accepting is not reused: Kafka may not confirm it."""
    await upload(server.alone)
    assert (await upload(server.client, "reuse")).status_code == 202


async def test_the_ingest_app_reuses_images_with_stored_objects(server: Server) -> None:
    """Without a read model an image is reusable once it has stored objects, because then it was not rejected."""
    image_id = (await upload(server.alone)).json()["image_id"]
    assert (await upload(server.alone, "reuse")).status_code == 202
    key = image_key(image_id, 1, "master.webp")
    await server.files.put(key, b"master", content_type="image/webp")
    again = await upload(server.alone, "reuse")
    assert (again.status_code, again.json()["image_id"]) == (200, image_id)
    assert again.json()["job_id"] == job_id_of(image_id, 1)


async def test_concurrent_equal_uploads_are_all_answered(server: Server) -> None:
    """Each of several concurrent equal uploads is accepted, or answered with one that was accepted."""
    answers = await asyncio.gather(*(upload(server.client, "reuse") for _ in range(6)))
    accepted = {answer.json()["image_id"] for answer in answers if answer.status_code == 202}
    reused = {answer.json()["image_id"] for answer in answers if answer.status_code == 200}
    assert len(answers) == sum(answer.status_code in (200, 202) for answer in answers)
    assert accepted
    assert reused <= accepted
    assert {event.image_id for _, event in server.sink.sent} == accepted


async def test_without_the_store_reuse_is_503(server: Server) -> None:
    """A failed lookup rejects the upload, and nothing is accepted."""
    server.files.unavailable = True
    refused(await upload(server.client, "reuse"), 503, "dependency-unavailable")
    refused(await server.client.get(KNOWN), 503, "dependency-unavailable")
    assert not server.sink.sent
