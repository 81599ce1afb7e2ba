"""An accepted deletion hides the image at once, in every response, whatever generations are in flight."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.events.envelope import Event
from schemas.http.images import ImagePage
from schemas.http.operations import FailedPage
from schemas.http.search import SearchAnswer
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import DEFAULT_OWNER, ImageState, ObjectRef, Rendition, StageState, job_id_of, new_image_id
from streams.errors import DeliveryUnconfirmed, DependencyUnavailable
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, receipt_key
from streams.object_store.pending_deletions import DELETIONS, mark_key, marked_image
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.object_store.tombstones import Tombstones, erasure_key
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord, StageRecord
from streams.settings import FilesSettings, QdrantSettings
from streams.topics import Topic
from tests.support.gateway_components import (
    JPEG,
    Encoder,
    Sink,
    StubReadiness,
    client_of,
    refused,
    settings,
    unit_vector,
)
from tests.support.read_models import merge

IMAGES = "/api/v1/images"


@dataclass
class UnconfirmingSink(Sink):
    """An event sink that may leave open whether Kafka has the event."""

    unconfirmed: bool = False

    async def send(self, topic: Topic, event: Event, *, traceparent: str | None = None, bulk: bool = False) -> None:
        if self.unconfirmed:
            raise DeliveryUnconfirmed("timed out")
        await super().send(topic, event, traceparent=traceparent, bulk=bulk)


class WatchedFiles:
    """A folder store that notes its calls; writes under `refuses` raise DependencyUnavailable."""

    def __init__(self, files: FileStore) -> None:
        self._files = files
        self.refuses: str | None = None
        self.calls: list[str] = []
        self.written: list[str] = []

    def __getattr__(self, name: str) -> Any:
        self.calls.append(name)
        return getattr(self._files, name)

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        self.calls.append("list")
        return self._files.list(prefix, after=after)

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        if self.refuses is not None and key.startswith(self.refuses):
            raise DependencyUnavailable("the store is full")
        self.written.append(key)
        return await self._files.put(key, data, content_type=content_type, sha256=sha256)


@dataclass
class Server:
    """The embedded gateway on a real folder and the real in-process read model."""

    files: WatchedFiles
    read_model: ReadModel
    sink: UnconfirmingSink
    client: httpx.AsyncClient

    async def add(self, generation: int = 1, *, state: ImageState = ImageState.COMPLETED) -> str:
        """Store and record an image with all it takes to be in every response; return its id."""
        image_id = new_image_id()
        ref = await self.files.put(image_key(image_id, generation, "medium.webp"), b"webp", content_type="image/webp")
        rendition = Rendition(name="medium", object=ref, width=4, height=3, aspect_ratio=4 / 3, format="webp")
        done = StageRecord(state=StageState.DONE)
        record = ImageRecord(
            image_id=image_id, owner=DEFAULT_OWNER, generation=generation, state=state, text="cat",
            renditions=(rendition,), stages={"sanitizer": done}, submitted_at="2026-01-01T00:00:00Z",
        )  # fmt: skip
        await self.read_model.begin(record)
        await merge(self.read_model, image_id, generation, {"has_vector": True}, vector=unit_vector(0))
        return image_id

    async def accept(self, image_id: str, generation: int, kind: ReceiptKind = ReceiptKind.REPROCESS) -> None:
        """Write the receipt of a run."""
        job_id = job_id_of(image_id, generation)
        receipt = Receipt(
            job_id=job_id, image_id=image_id, owner=DEFAULT_OWNER, generation=generation, kind=kind,
            submitted_at="2026-01-02T00:00:00Z",
        )  # fmt: skip
        await self.files.put(receipt_key(job_id), receipt.model_dump_json().encode(), content_type="application/json")

    async def delete(self, image_id: str) -> httpx.Response:
        """Request a deletion."""
        return await self.client.delete(f"{IMAGES}/{image_id}")

    async def listed(self) -> list[str]:
        """Return the ids of the first page."""
        answer = await self.client.get(IMAGES)
        return [item.image_id for item in ImagePage.model_validate_json(answer.content).items]

    async def found(self) -> list[str]:
        """Return the ids that a search by meaning and by text finds."""
        answer = await self.client.get("/api/v1/search?q=cat")
        return [item.image_id for item in SearchAnswer.model_validate_json(answer.content).items]

    async def failed(self) -> list[str]:
        """Return the ids of the failed images of all owners."""
        answer = await self.client.get("/api/v1/health/failed?everybody=true")
        return [image.image_id for image in FailedPage.model_validate_json(answer.content).images]

    async def keys(self, prefix: str) -> list[str]:
        """Return the keys under a prefix."""
        return [info.key async for info in self.files.list(prefix)]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """The whole gateway with real components and an in-memory event sink."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as folder,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        files, sink = WatchedFiles(folder), UnconfirmingSink()
        components = QueryComponents(
            files=files, events=sink, read_model=read_model, encoder=Encoder(), readiness=StubReadiness()
        )
        async with client_of(embedded_app(settings(), components)) as client:
            yield Server(files, read_model, sink, client)


async def assert_hidden(server: Server, image_id: str, jobs: list[int]) -> None:
    """Assert that no response contains the image, and that no job but the deletion's is available."""
    gets = (image_id, f"{image_id}/all", f"{image_id}/direct?size=medium", f"{image_id}/metadata",
            f"{image_id}/history", f"{image_id}/lineage",
            *(f"jobs/{job_id_of(image_id, generation)}" for generation in jobs))  # fmt: skip
    for path in gets:
        refused(await server.client.get(f"{IMAGES}/{path}"), 410, "gone")
    patch = await server.client.patch(f"{IMAGES}/{image_id}", json={"tags": ["x"]})
    refused(patch, 410, "gone")
    for path in ("/api/v1/search/image", "/api/v1/features"):
        refused(await server.client.post(path, json={"image_id": image_id}), 410, "gone")
    batch = (await server.client.get(f"{IMAGES}/batch?image_ids={image_id}")).json()
    assert [error["code"] for error in batch["errors"]] == ["gone"]
    assert image_id not in [*await server.listed(), *await server.found(), *await server.failed()]


@pytest.mark.parametrize("pending", [(), (2,), (2, 3)])
async def test_a_deletion_hides_the_image_over_generations_in_flight(server: Server, pending: tuple[int, ...]) -> None:
    """Reruns that the read model has not seen lie between its record and the deletion: the image is hidden at once."""
    kept, gone = await server.add(), await server.add()
    for generation in pending:
        await server.accept(gone, generation)
    answer = await server.delete(gone)
    assert answer.status_code == 202, answer.text
    assert answer.json()["job_id"] == job_id_of(gone, len(pending) + 2)
    await assert_hidden(server, gone, [1, *pending])
    assert (await server.client.get(answer.headers["location"])).json()["status"] == "processing"
    assert await server.listed() == await server.found() == [kept]
    assert (await server.delete(gone)).json()["job_id"] == answer.json()["job_id"]


async def test_a_deletion_hides_a_failed_image(server: Server) -> None:
    """A failed image is not among the failures once its deletion is accepted."""
    image_id = await server.add(state=ImageState.FAILED)
    assert await server.failed() == [image_id]
    await server.accept(image_id, 2)
    await server.delete(image_id)
    await assert_hidden(server, image_id, [1, 2])


async def test_a_superseded_job_of_a_deleted_image_is_gone(server: Server) -> None:
    """A job of an earlier generation does not name the newer one once the deletion is accepted."""
    image_id = await server.add(generation=2)
    refused(await server.client.get(f"{IMAGES}/jobs/{image_id}.1"), 410, "superseded")
    await server.delete(image_id)
    refused(await server.client.get(f"{IMAGES}/jobs/{image_id}.1"), 410, "gone")


async def test_an_image_submitted_after_its_deletion_is_shown(server: Server) -> None:
    """A record of a later generation than the deletion's, from another service's event, is in every response."""
    image_id = await server.add()
    await server.delete(image_id)
    assert await server.listed() == []
    await server.accept(image_id, 3, ReceiptKind.UPLOAD)
    await server.read_model.begin(
        ImageRecord(image_id=image_id, owner=DEFAULT_OWNER, generation=3, state=ImageState.COMPLETED, text="cat")
    )
    assert await server.listed() == await server.found() == [image_id]
    assert (await server.client.get(f"{IMAGES}/jobs/{image_id}.3")).json()["status"] == "completed"
    assert (await server.client.get(f"{IMAGES}/{image_id}/metadata")).status_code == 200


@pytest.mark.parametrize("kept", [{"receipt"}, {"mark", "tombstone"}, {"certain tombstone"}])
async def test_each_trace_of_a_deletion_hides_its_image(server: Server, kept: set[str]) -> None:
    """One image is hidden by the receipt alone, by the mark with the tombstone, and by a certain tombstone."""
    image_id = await server.add()
    await server.accept(image_id, 2)
    await server.delete(image_id)
    if "certain tombstone" in kept:
        await Tombstones(server.files).make_certain(image_id, DEFAULT_OWNER, 3)
    if not kept & {"tombstone", "certain tombstone"}:
        await server.files.delete(erasure_key(image_id))
    if "receipt" not in kept:
        await server.files.delete(receipt_key(job_id_of(image_id, 3)))
    if "mark" not in kept:
        await server.files.delete(mark_key(DEFAULT_OWNER, image_id))
    refused(await server.client.get(f"{IMAGES}/{image_id}"), 410, "gone")


async def test_a_mark_is_written_after_its_receipt_and_before_the_event(server: Server) -> None:
    """A gateway killed at any point leaves no mark without a receipt, and no event without a mark."""
    image_id = await server.add()
    server.files.written.clear()
    await server.delete(image_id)
    written = [key for key in server.files.written if not key.startswith("erasing/")]
    mark = mark_key(DEFAULT_OWNER, image_id)
    assert written == [erasure_key(image_id), receipt_key(job_id_of(image_id, 2)), mark]

    server.files.refuses, other = DELETIONS, await server.add()
    sent = len(server.sink.sent)
    refused(await server.delete(other), 503, "dependency-unavailable")
    assert len(server.sink.sent) == sent


async def test_a_refused_deletion_leaves_nothing(server: Server) -> None:
    """A deletion that Kafka does not take leaves no tombstone, receipt or mark; one accepted before is kept."""
    image_id = await server.add()
    server.sink.unavailable = True
    refused(await server.delete(image_id), 503, "dependency-unavailable")
    assert [await server.keys(prefix) for prefix in ("erasures/", "erasing/", "jobs/", DELETIONS)] == [[], [], [], []]
    assert await server.listed() == [image_id]

    server.sink.unavailable = False
    assert (await server.delete(image_id)).status_code == 202
    server.sink.unavailable = True
    refused(await server.delete(image_id), 503, "dependency-unavailable")
    await assert_hidden(server, image_id, [1])


async def test_a_page_reads_no_object_per_image(server: Server) -> None:
    """A page of the listing costs one call of the object store, whatever its size and however many are deleted."""
    ids = [await server.add() for _ in range(20)]
    for image_id in ids[::2]:
        await server.delete(image_id)
    server.files.calls.clear()
    assert len(await server.listed()) == 10
    assert server.files.calls == ["list"]
    server.files.calls.clear()
    assert len(await server.found()) == 10
    assert server.files.calls == ["list"]


async def test_a_rejected_upload_is_on_no_page(server: Server) -> None:
    """An upload answered 503 whose event Kafka may have is hidden from listings too, should it be indexed."""
    server.sink.unconfirmed = True
    upload = await server.client.post("/api/v1/images/upload", files={"file": ("cat.jpg", JPEG)})
    refused(upload, 503, "dependency-unavailable")
    (mark,) = await server.keys(DELETIONS)
    _, image_id = marked_image(mark)
    await server.read_model.begin(ImageRecord(image_id=image_id, owner=DEFAULT_OWNER, generation=1))
    assert await server.listed() == []
