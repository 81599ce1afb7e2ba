"""Presigned delivery, and revision numbers, on a real MinIO."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from pydantic import SecretStr

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.images.revisions import Revisions
from infra.local.minio import LocalMinio
from schemas.events.facts import ImageAnnotated
from schemas.values import DEFAULT_OWNER, ImageState, Rendition, new_image_id
from streams.concurrency.circuit_breaker import Breakers
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore
from streams.read_model.factory import open_read_model
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, settings

DATA = b"RIFF and so on" * 1000


@pytest.fixture
async def files(minio: LocalMinio) -> AsyncIterator[FileStore]:
    """An open bucket."""
    where = FilesSettings(
        endpoint=minio.endpoint, access_key=minio.access_key, secret_key=SecretStr(minio.secret_key), bucket="delivery"
    )
    async with open_files(where, Breakers()) as store:
        yield store


async def test_a_redirect_leads_to_the_bytes(files: FileStore, tmp_path: Path) -> None:
    """The redirect returns the bytes from the store, with the image's type and the original's name."""
    image_id = new_image_id()
    ref = await files.put(image_key(image_id, 1, "medium.webp"), DATA, content_type="image/webp")
    rendition = Rendition(name="medium", object=ref, width=4, height=3, aspect_ratio=4 / 3, format="webp")
    record = ImageRecord(
        image_id=image_id,
        owner=DEFAULT_OWNER,
        generation=1,
        state=ImageState.COMPLETED,
        filename="Käfer.jpg",
        renditions=(rendition,),
    )
    async with open_read_model(QdrantSettings(path=tmp_path)) as read_model:
        await read_model.begin(record)
        components = QueryComponents(files=files, events=Sink(), read_model=read_model, readiness=StubReadiness())
        async with client_of(embedded_app(settings(delivery="presigned"), components)) as client:
            moved = await client.get(f"/api/v1/images/{image_id}/direct")
    assert moved.status_code == 307, moved.text
    async with httpx.AsyncClient() as outside:
        whole = await outside.get(moved.headers["location"])
        part = await outside.get(moved.headers["location"], headers={"range": "bytes=5-9"})
        forged = await outside.get(moved.headers["location"].replace("medium", "large"))
    assert (whole.status_code, whole.content, whole.headers["content-type"]) == (200, DATA, "image/webp")
    assert whole.headers["content-disposition"] == "inline; filename*=UTF-8''K%C3%A4fer.webp"
    assert (part.status_code, part.content) == (206, DATA[5:10])
    assert forged.status_code == 403


async def test_a_revision_is_taken_once(files: FileStore) -> None:
    """Of several gateways that take the same revision of an image concurrently, one succeeds."""
    image_id = new_image_id()
    wanted = [
        ImageAnnotated(image_id=image_id, owner=DEFAULT_OWNER, revision=1, tags=(f"t{number}",)) for number in range(8)
    ]
    taken = await asyncio.gather(*map(Revisions(files).reserve, wanted))
    assert sum(taken) == 1
    assert await Revisions(files).newest(image_id) == wanted[taken.index(True)]
