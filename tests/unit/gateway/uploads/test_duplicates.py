"""The same bytes again: asked for before they are sent, or answered with the image they were made into."""

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
    """An authenticator that believes what it is told."""

    async def identify(self, request: Any) -> Identity:
        return Identity(Owner(request.headers.get("x-owner", "default")), frozenset(Scope), "test")


@dataclass
class House:
    """The embedded app, and the ingest app alone, on the same store."""

    files: FaultyFiles
    read_model: ReadModel
    sink: Sink
    client: httpx.AsyncClient
    alone: httpx.AsyncClient

    async def record(self, image_id: str, state: ImageState, **more: Any) -> None:
        """Do what the indexer does."""
        ref = ObjectRef(bucket="darkroom", key=original_key("default", SHA), sha256=SHA, size=len(JPEG))
        known = {"image_id": image_id, "owner": "default", "generation": 1, "state": state, "original": ref}
        await self.read_model.begin(ImageRecord.model_validate(known | more))


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    async with (
        open_files(FilesSettings(directory=tmp_path / "files")) as store,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        files, sink = FaultyFiles(store), Sink()
        parts = IngestComponents(files=files, events=sink, readiness=StubReadiness(), authenticator=Named())
        whole = QueryComponents(
            files=files, events=sink, readiness=StubReadiness(), authenticator=Named(), read_model=read_model
        )
        async with (
            client_of(embedded_app(settings(), whole)) as client,
            client_of(ingest_app(settings(), parts)) as alone,
        ):
            yield House(files, read_model, sink, client, alone)


async def upload(client: httpx.AsyncClient, how: str | None = None, **headers: str) -> httpx.Response:
    data = {} if how is None else {"on_duplicate": how}
    return await client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)}, data=data, headers=headers)


async def test_known_bytes_are_known_before_they_are_sent(house: House) -> None:
    """GET by SHA-256 answers with the image of these bytes, HEAD without a body, both also in the ingest app alone."""
    for client in (house.client, house.alone):
        refused(await client.get(f"/api/v1/images/by-digest/{'0' * 64}"), 404, "not-found")
    image = (await upload(house.client)).json()
    for client in (house.client, house.alone):
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


async def test_only_the_read_model_knows_how_an_image_ended(house: House) -> None:
    """The embedded app tells the image's state; the ingest app alone says nothing rather than guess."""
    image_id = (await upload(house.client)).json()["image_id"]
    assert (await house.client.get(KNOWN)).json()["status"] == "processing"
    await house.record(image_id, ImageState.REJECTED)
    assert (await house.client.get(KNOWN)).json()["status"] == "rejected"
    assert "status" not in (await house.alone.get(KNOWN)).json()


async def test_the_newest_image_that_is_not_deleted_answers(house: House) -> None:
    """Of several images of the same bytes the newest is named; once it is deleted, the one before."""
    first, second = [(await upload(house.client)).json()["image_id"] for _ in range(2)]
    assert (await house.client.get(KNOWN)).json()["image_id"] == second
    assert (await house.client.delete(f"/api/v1/images/{second}")).status_code == 202
    for client in (house.client, house.alone):
        assert (await client.get(KNOWN)).json()["image_id"] == first
    assert (await house.client.delete(f"/api/v1/images/{first}")).status_code == 202
    for client in (house.client, house.alone):
        refused(await client.get(KNOWN), 404, "not-found")


async def test_nobody_learns_of_anothers_bytes(house: House) -> None:
    """Another owner hears 404 for bytes that are there, and reusing them makes an image of their own."""
    mine = (await upload(house.client)).json()["image_id"]
    for client in (house.client, house.alone):
        refused(await client.get(KNOWN, headers={"x-owner": "eve"}), 404, "not-found")
    theirs = await upload(house.client, "reuse", **{"x-owner": "eve"})
    assert theirs.status_code == 202
    assert theirs.json()["image_id"] != mine


async def test_what_was_never_accepted_is_not_known(house: House) -> None:
    """A claim that a dead gateway left, without a receipt, is no image."""
    await add_reference(house.files, "default", SHA, "01900000-0000-7000-8000-000000000001")
    for client in (house.client, house.alone):
        refused(await client.get(KNOWN), 404, "not-found")


async def test_a_master_is_not_taken_for_an_original(house: House) -> None:
    """An image whose master has these bytes, and whose original has others, is not named."""
    image_id = (await upload(house.client)).json()["image_id"]
    other = hashlib.sha256(b"the master").hexdigest()
    await add_reference(house.files, "default", other, image_id)
    for client in (house.client, house.alone):
        refused(await client.get(f"/api/v1/images/by-digest/{other}"), 404, "not-found")


async def test_reuse_answers_with_the_image_there_is(house: House) -> None:
    """With on_duplicate=reuse the second upload is 200 with the first image, marked so, and no event is sent."""
    first = (await upload(house.client)).json()
    again = await upload(house.client, "reuse")
    assert again.status_code == 200
    assert again.json() == first | {"duplicate": True}
    assert len(house.sink.sent) == 1
    assert len(await house.files.receipts()) == 1


async def test_without_being_asked_the_same_bytes_are_a_new_image(house: House) -> None:
    """By default, and with on_duplicate=new, every upload is an image of its own."""
    ids = {(await upload(house.client, how)).json()["image_id"] for how in (None, "new", None)}
    assert len(ids) == 3
    refused(await upload(house.client, "maybe"), 422, "invalid-field")


@pytest.mark.parametrize("state", [ImageState.REJECTED, ImageState.FAILED])
async def test_an_image_that_ended_badly_is_not_reused(house: House, state: ImageState) -> None:
    """Bytes whose image was rejected or failed are tried anew; an older good image of them is preferred."""
    first = (await upload(house.client)).json()["image_id"]
    await house.record(first, state)
    second = await upload(house.client, "reuse")
    assert second.status_code == 202
    await house.record(second.json()["image_id"], ImageState.COMPLETED)
    third = (await upload(house.client)).json()["image_id"]
    await house.record(third, state)
    again = await upload(house.client, "reuse")
    assert (again.status_code, again.json()["image_id"]) == (200, second.json()["image_id"])
    assert again.json()["status"] == "completed"


async def test_a_deleted_image_is_not_reused(house: House) -> None:
    """From the moment its deletion is accepted, an image stands for nothing any more."""
    first = (await upload(house.client)).json()["image_id"]
    assert (await house.client.delete(f"/api/v1/images/{first}")).status_code == 202
    assert (await upload(house.client, "reuse")).status_code == 202


async def test_a_receipt_alone_is_no_promise(house: House) -> None:
    """An image another gateway is about to accept is not reused: Kafka may yet refuse it."""
    await upload(house.alone)
    assert (await upload(house.client, "reuse")).status_code == 202


async def test_the_ingest_app_alone_reuses_what_was_stored(house: House) -> None:
    """Without a read model an image is reused once something was stored of it: then it was not refused."""
    image_id = (await upload(house.alone)).json()["image_id"]
    assert (await upload(house.alone, "reuse")).status_code == 202
    key = image_key(image_id, 1, "master.webp")
    await house.files.put(key, b"master", content_type="image/webp")
    again = await upload(house.alone, "reuse")
    assert (again.status_code, again.json()["image_id"]) == (200, image_id)
    assert again.json()["job_id"] == job_id_of(image_id, 1)


async def test_equal_uploads_at_once_are_all_answered(house: House) -> None:
    """Of equal uploads at the same moment each is accepted or answered with one that was: none is lost or half done."""
    answers = await asyncio.gather(*(upload(house.client, "reuse") for _ in range(6)))
    accepted = {answer.json()["image_id"] for answer in answers if answer.status_code == 202}
    reused = {answer.json()["image_id"] for answer in answers if answer.status_code == 200}
    assert len(answers) == sum(answer.status_code in (200, 202) for answer in answers)
    assert accepted
    assert reused <= accepted
    assert {event.image_id for _, event in house.sink.sent} == accepted


async def test_when_the_store_is_away_reuse_is_503(house: House) -> None:
    """A look that fails refuses the upload as a whole, with nothing accepted."""
    house.files.unavailable = True
    refused(await upload(house.client, "reuse"), 503, "dependency-unavailable")
    refused(await house.client.get(KNOWN), 503, "dependency-unavailable")
    assert not house.sink.sent
