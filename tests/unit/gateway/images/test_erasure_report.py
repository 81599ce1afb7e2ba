"""The erasure report of a deletion, from its 202 on."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from gateway.client import AsyncDarkroom
from gateway.operations.health import Parts
from schemas.http.submissions import ErasureView
from schemas.stored.erasures import ErasureState, Removed
from schemas.values import DEFAULT_OWNER, REQUIRED_STAGES, job_id_of, new_image_id
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, receipt_key
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import (
    BASE,
    JPEG,
    UPLOAD,
    Encoder,
    FaultyFiles,
    Sink,
    client_of,
    refused,
    settings,
)

IMAGES = "/api/v1/images"


@dataclass
class Server:
    """The embedded gateway with real components and an in-memory event sink."""

    files: FaultyFiles
    store: FileStore
    read_model: ReadModel
    sink: Sink
    client: httpx.AsyncClient

    @property
    def erasures(self) -> Tombstones:
        return Tombstones(self.store)

    async def image(self) -> str:
        """Upload an image and record it in the read model."""
        answer = await self.client.post(UPLOAD, files={"file": ("cat.jpg", JPEG)})
        image_id: str = answer.json()["image_id"]
        await self.read_model.begin(
            ImageRecord(image_id=image_id, owner=DEFAULT_OWNER, generation=1, required=REQUIRED_STAGES)
        )
        await self.store.put(image_key(image_id, 1, "master.png"), b"x", content_type="image/png")
        return image_id

    async def erasure(self, image_id: str) -> ErasureView:
        answer = await self.client.get(f"{IMAGES}/{image_id}/erasure")
        assert answer.status_code == 200, answer.text
        return ErasureView.model_validate_json(answer.content)

    async def erase(self, image_id: str) -> None:
        """Do what the indexer does."""
        erasure = await self.erasures.make_certain(image_id, DEFAULT_OWNER, 2)
        assert erasure is not None
        for key in (image_key(image_id, 1, "master.png"), receipt_key(f"{image_id}.1"), receipt_key(f"{image_id}.2")):
            await self.store.delete(key)
        await self.read_model.write_tombstone(image_id, DEFAULT_OWNER, 2)
        await self.erasures.update(erasure, erased_at="2026-01-01T00:00:01Z", removed=Removed(objects=1, receipts=2))


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The gateway."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as store,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        sink, files = Sink(), FaultyFiles(store)
        app = embedded_app(
            settings(),
            QueryComponents(
                files=files,
                events=sink,
                read_model=read_model,
                encoder=Encoder(),
                readiness=Parts({}, timeout_s=5),
            ),
        )
        async with client_of(app) as client:
            yield Server(files, store, read_model, sink, client)


async def test_a_deletion_is_reported_until_its_end(server: Server) -> None:
    """The 202 links the report: state, removed objects, and objects that still exist."""
    image_id = await server.image()
    accepted = (await server.client.delete(f"{IMAGES}/{image_id}")).json()
    assert accepted["erasure_url"] == f"{BASE}{IMAGES}/{image_id}/erasure"
    asked = await server.erasure(image_id)
    assert (asked.state, asked.erased_at, asked.removed) == (ErasureState.REQUESTED, None, Removed())
    assert asked.remaining == 3, "an object, and the receipts of upload and deletion"
    assert asked.requested_at < asked.leaves_log_by

    await server.erase(image_id)
    erased = await server.erasure(image_id)
    assert (erased.state, erased.remaining, erased.removed) == (
        ErasureState.ERASED,
        0,
        Removed(objects=1, receipts=2),
    )
    await server.store.put(image_key(image_id, 1, "late.webp"), b"x", content_type="image/webp")
    assert (await server.erasure(image_id)).remaining == 1
    await server.store.delete(image_key(image_id, 1, "late.webp"))

    known = await server.erasures.get(image_id)
    assert known is not None
    await server.erasures.finish(known, known.removed)
    finished = await server.erasure(image_id)
    assert finished.state is ErasureState.FINISHED
    assert finished.finished_at is not None


async def test_a_deleted_image_stays_deleted_without_its_record(server: Server) -> None:
    """Without the read model's record the image is still 410, its deletion done, and a further deletion rejected."""
    image_id = await server.image()
    job = (await server.client.delete(f"{IMAGES}/{image_id}")).json()["job_id"]
    await server.erase(image_id)
    for purged in (False, True):
        if purged:
            await server.read_model.purge(image_id, 2)
        assert (await server.client.get(f"{IMAGES}/jobs/{job}")).json()["status"] == "deleted"
        for path in (image_id, f"{image_id}/all", f"jobs/{job_id_of(image_id, 1)}"):
            refused(await server.client.get(f"{IMAGES}/{path}"), 410, "gone")
        refused(await server.client.delete(f"{IMAGES}/{image_id}"), 410, "gone")


async def test_there_is_no_report_of_another_owners_deletion(server: Server) -> None:
    """An existing image, an unknown id and another owner's image have no report."""
    foreign = new_image_id()
    assert await server.erasures.request(foreign, "rival", 2)
    for image_id in (await server.image(), new_image_id(), foreign, "x", "..%2Fx"):
        refused(await server.client.get(f"{IMAGES}/{image_id}/erasure"), 404, "not-found")


async def test_a_failed_deletion_leaves_no_report(server: Server) -> None:
    """After the 503 nothing of the request is left, and the next one is accepted."""
    image_id = await server.image()
    server.sink.unavailable = True
    before = {key async for key in _keys(server.store)}
    refused(await server.client.delete(f"{IMAGES}/{image_id}"), 503, "dependency-unavailable")
    assert {key async for key in _keys(server.store)} == before
    refused(await server.client.get(f"{IMAGES}/{image_id}/erasure"), 404, "not-found")
    server.sink.unavailable = False
    assert (await server.client.delete(f"{IMAGES}/{image_id}")).status_code == 202


async def test_a_failed_second_request_does_not_revert_the_first(server: Server) -> None:
    """If Kafka becomes unavailable between two deletion requests, the accepted one stays accepted."""
    image_id = await server.image()
    assert (await server.client.delete(f"{IMAGES}/{image_id}")).status_code == 202
    server.sink.unavailable = True
    refused(await server.client.delete(f"{IMAGES}/{image_id}"), 503, "dependency-unavailable")
    assert (await server.erasure(image_id)).state is ErasureState.REQUESTED


async def test_without_the_store_there_is_no_report(server: Server) -> None:
    """With the object store unavailable the response is 503, without a count."""
    image_id = await server.image()
    await server.client.delete(f"{IMAGES}/{image_id}")
    server.files.unavailable = True
    refused(await server.client.get(f"{IMAGES}/{image_id}/erasure"), 503, "dependency-unavailable")


async def test_the_client_reads_the_report(server: Server) -> None:
    """The Python client deletes an image and reads the report."""
    image_id = await server.image()
    async with AsyncDarkroom(BASE, transport=server.client._transport) as darkroom:
        accepted = await darkroom.delete(image_id)
        assert accepted.erasure_url.endswith(f"{image_id}/erasure")
        assert (await darkroom.erasure(image_id)).state is ErasureState.REQUESTED


async def _keys(files: FileStore) -> AsyncIterator[str]:
    async for found in files.list(""):
        yield found.key
