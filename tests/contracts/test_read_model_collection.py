"""The collection is created, compared, migrated and refused; data of earlier versions is moved, with nothing lost."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest
from pydantic import JsonValue
from qdrant_client import QdrantClient, models

from schemas.values import new_image_id
from streams.errors import NotReady
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.qdrant import collection, documents
from streams.read_model.qdrant.documents import (
    COLLECTION_POINT,
    HISTORY,
    INDEXES,
    SPARSE,
    Derivation,
    vectors_of_collection,
)
from streams.read_model.qdrant.edge_points import EdgePoints
from streams.read_model.qdrant.model import QdrantReadModel
from streams.read_model.qdrant.points import Write
from streams.read_model.qdrant.server_points import ServerPoints
from streams.read_model.records import DIMENSIONS, VECTOR, Filters, ImageRecord
from streams.read_model.words import Analyzer
from streams.settings import QdrantSettings
from tests.support.read_models import added, merge, stub, vector

pytestmark = pytest.mark.filterwarnings("ignore:Payload indexes")  # of the model of a server in memory
CLIP = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)


def payload_of_version_1(record: ImageRecord) -> dict[str, JsonValue]:
    """Return the payload as the first schema had it."""
    payload: dict[str, JsonValue] = record.model_dump(mode="json", exclude_none=True)
    payload["label_keys"] = [label.lower() for label in record.labels]
    payload["sequence"] = documents.sequence(record.image_id)
    payload[HISTORY] = {
        "aa": {"event_id": "a", "type": "t", "generation": 1, "stage": "ocr", "occurred_at": "x", "recorded_at": "y"}
    }
    return payload  # fmt: skip


def written_by_version_1(client: QdrantClient, name: str) -> list[ImageRecord]:
    """Create a collection of the first schema with images of every kind."""
    client.create_collection(name, vectors_config={VECTOR: CLIP})
    records = [
        stub(text="Café of old", labels=("bus",), filename="x.jpg", updated_at="1"),
        stub(owner="bert", tags=("red",), context={"a": "deep"}),
        documents.tombstone(new_image_id(), "anna", 3),
        *(stub(text=f"number {n}", updated_at=str(n)) for n in range(600)),
    ]
    points = [
        models.PointStruct(
            id=record.image_id,
            payload=payload_of_version_1(record),
            vector={VECTOR: vector(place)} if place < 2 else {},
        )
        for place, record in enumerate(records)
    ]
    client.upsert(name, points)
    return records


async def until(condition: Callable[[], bool]) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.02)


async def check_contents(model: ReadModel, records: list[ImageRecord]) -> None:
    """Assert that every record of the first schema is there, and found."""
    for place, record in enumerate(records[:4]):
        assert await model.get(record.image_id) == record
        stored = await model.vector_of(record.image_id)
        assert (stored is not None) == (place < 2)
    assert stored is None
    assert await model.vector_of(records[0].image_id) == pytest.approx(vector(0), abs=1e-5)
    assert (await model.history(records[0].image_id))["aa"].stage == "ocr"
    assert await model.count() == {"processing": 602}
    for query, place in {"cafe old": 0, "buses": 0, "x": 0, '"number 599"': 602}.items():
        assert [hit.record.image_id for hit in await model.search_words("anna", query, limit=3)] == [
            records[place].image_id
        ], query
    assert [hit.record.image_id for hit in await model.search_words("bert", "deep", limit=3)] == [records[1].image_id]
    assert len(await model.page("anna", Filters(text="number"), limit=1000)) == 600
    assert [record.image_id for record in await model.scan(limit=700)] == sorted(
        record.image_id for record in records if not record.deleted
    )


async def test_data_of_the_local_mode_is_moved(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The files of qdrant-client's local mode become the engine's at the first start, and are removed."""
    caplog.set_level(logging.INFO)
    client = QdrantClient(path=str(tmp_path))
    records = written_by_version_1(client, "images")
    client.close()
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        await check_contents(model, records)
        assert not (tmp_path / "collection" / "images").exists()
        await merge(model, records[0].image_id, 1, {"text": "changed"})
    moved = [record for record in caplog.records if "new files" in record.message]
    assert moved
    assert vars(moved[-1])["images"] == len(records)
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        assert [hit.record.text for hit in await model.search_words("anna", "changed", limit=3)] == ["changed"]


async def test_an_interrupted_move_is_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the move fails in the middle, the old files stay, and the next start moves everything."""
    client = QdrantClient(path=str(tmp_path))
    records = written_by_version_1(client, "images")
    client.close()
    real, calls = EdgePoints.write, 0

    def failing(self: EdgePoints, operations: list[models.UpsertOperation]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:  # the collection's description, a page, and then
            raise OSError("no space left")
        real(self, operations)

    monkeypatch.setattr(EdgePoints, "write", failing)
    with pytest.raises(OSError, match="no space"):
        async with open_read_model(QdrantSettings(path=tmp_path)):
            pass
    assert (tmp_path / "collection" / "images" / "storage.sqlite").is_file()
    monkeypatch.setattr(EdgePoints, "write", real)
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        await check_contents(model, records)


async def test_an_older_collection_of_a_server_is_brought_up_to_date(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Missing vectors and derived keys are added in the background; images are found by id meanwhile."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(collection, "PAGE", 50)
    client = QdrantClient(":memory:")
    records = written_by_version_1(client, "old")
    points = ServerPoints(client, QdrantSettings(collection="old"))
    model = QdrantReadModel(points, Derivation(), threads=2, longest_s=60)
    await model.open()
    assert await model.get(records[0].image_id) == records[0]
    await until(lambda: "the read model is up to date" in caplog.messages)
    assert points.describe().sparse == set(SPARSE.values())
    await check_contents(model, records)
    assert points.retrieve([records[1].image_id], ["context"])[0].payload == {"context": '{"a":"deep"}'}
    assert "bringing the read model up to date" in caplog.messages
    await model._collection.bring_up_to_date()  # nothing to do
    assert caplog.messages.count("the read model is up to date") == 1
    client.close = lambda *_: None  # type: ignore[method-assign]
    await model.close()


async def test_two_processes_share_the_work(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one process brings the images up to date, another waits, and finds it done."""
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(collection, "PAGE", 50)
    monkeypatch.setattr(collection, "RETRY_S", 0.05)
    client = QdrantClient(":memory:")
    records = written_by_version_1(client, "old")
    one_at_a_time = threading.Lock()

    class Serialized(ServerPoints):
        """A server applies one write after the other; the model of a server in memory does not."""

        def write(self, operations: Sequence[Write]) -> None:
            with one_at_a_time:
                super().write(operations)

    settings = QdrantSettings(collection="old")
    both = [QdrantReadModel(Serialized(client, settings), Derivation(), threads=1, longest_s=60) for _ in range(2)]
    for model in both:
        await model._collection.prepare()
    await asyncio.gather(*(model._collection.bring_up_to_date() for model in both))
    assert caplog.messages.count("the read model is up to date") == 1
    await check_contents(both[1], records)


async def test_an_empty_collection_gets_each_missing_vector_once(caplog: pytest.LogCaptureFixture) -> None:
    """An empty collection without the vectors of words has all of them, and its indexes, after the start."""
    caplog.set_level(logging.INFO)
    client = QdrantClient(":memory:")
    client.create_collection("empty", vectors_config=vectors_of_collection())
    points = ServerPoints(client, QdrantSettings(collection="empty"))
    await QdrantReadModel(points, Derivation(), threads=1, longest_s=60)._collection.prepare()
    assert set(points.describe().sparse) == set(SPARSE.values())
    assert caplog.messages.count("adding a vector to the read model") == len(SPARSE)


async def test_a_write_during_the_update_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is written between reading an image and deriving its keys stays; its other keys are derived again."""
    client = QdrantClient(":memory:")
    records = written_by_version_1(client, "old")
    model = QdrantReadModel(
        ServerPoints(client, QdrantSettings(collection="old")), Derivation(), threads=1, longest_s=60
    )
    await model._collection.prepare()
    real = collection.Collection._derived

    def written_meanwhile(self: collection.Collection, record: ImageRecord) -> list[object]:
        operations = real(self, record)
        patches: dict[str, Mapping[str, JsonValue]] = {
            records[0].image_id: {"text": "fresh", "words_text": "fresh", "updated_at": "2"},
            records[3].image_id: {"width": 7, "updated_at": "later"},
        }
        if patch := patches.get(record.image_id):
            where = models.Filter(must=[models.HasIdCondition(has_id=[record.image_id])])
            self._points.write(
                [
                    models.SetPayloadOperation(set_payload=models.SetPayload(payload=dict(patch), filter=where)),
                ]
            )
        return operations  # type: ignore[return-value]  # fmt: skip

    monkeypatch.setattr(collection.Collection, "_derived", written_meanwhile)
    await model._collection.bring_up_to_date()
    assert len(await model.page("anna", Filters(text="fresh"), limit=5)) == 1
    assert await model.page("anna", Filters(text="cafe"), limit=5) == []
    assert len(await model.page("anna", Filters(text="number"), limit=1000)) == 600


async def test_another_stemming_is_applied_to_all_images(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """With a language set, stems are compared; images written before are brought up to date."""
    caplog.set_level(logging.INFO)
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        image_id = await added(model, text="runners running")
        assert await model.search_words("anna", "run", limit=3) == []
    async with open_read_model(QdrantSettings(path=tmp_path, stemming="english")) as model:
        await until(lambda: "the read model is up to date" in caplog.messages)
        for query in ("run", "runs running", '"runner runs"'):
            assert [hit.record.image_id for hit in await model.search_words("anna", query, limit=3)] == [image_id]


async def test_stems_of_a_start_that_ended_early_are_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a process wrote with another language is derived again, even if it ended before it updated any image."""
    caplog.set_level(logging.INFO)
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        image_id = await added(model, text="old")
    points = EdgePoints(tmp_path / "edge" / "images")
    early = QdrantReadModel(points, Derivation(Analyzer("english")), threads=1, longest_s=20)
    await early._collection.prepare()
    await merge(early, image_id, 1, {"text": "running"})
    await early.close()
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        await until(lambda: "the read model is up to date" in caplog.messages)
        assert [hit.record.image_id for hit in await model.search_words("anna", "running", limit=3)] == [image_id]


@pytest.mark.parametrize("kind", ["engine", "calls"])
async def test_a_newer_schema_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """A collection of a newer version is not opened, and the sentence says what to do."""
    client = QdrantClient(":memory:")

    def points() -> EdgePoints | ServerPoints:
        return EdgePoints(tmp_path / "x") if kind == "engine" else ServerPoints(client, QdrantSettings(collection="x"))

    client.close = lambda *_: None  # type: ignore[method-assign]
    monkeypatch.setattr(collection, "SCHEMA", 99)
    newer = QdrantReadModel(points(), Derivation(), threads=1, longest_s=20)
    await newer.open()
    await newer.close()
    monkeypatch.undo()
    older = QdrantReadModel(points(), Derivation(), threads=1, longest_s=20)
    with pytest.raises(NotReady, match=r"schema 99.*DARKROOM_QDRANT__COLLECTION"):
        await older.open()
    await older.close()


async def test_missing_indexes_are_created(tmp_path: Path) -> None:
    """An index that an existing collection lacks, or has of another kind, is created in the background."""
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        image_id = await added(model, text="words", tags=["red"])
    points = EdgePoints(tmp_path / "edge" / "images")
    points.open({}, [])
    import qdrant_edge as edge  # noqa: PLC0415

    for key in ("tags", "words_text"):
        points._update(edge.UpdateOperation.delete_field_index(key))
    points.add_index(
        "words_text", models.TextIndexParams(type=models.TextIndexType.TEXT, tokenizer=models.TokenizerType.WORD)
    )
    points.close()
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        found = model._points.describe  # type: ignore[attr-defined]
        await until(lambda: found().indexes.keys() >= INDEXES.keys())
        await until(lambda: found().indexes["words_text"] == "text by whitespace")
        assert [
            record.image_id for record in await model.page("anna", Filters(tags=("red",), text="words"), limit=3)
        ] == [image_id]


async def test_a_collection_of_another_shape_is_refused(tmp_path: Path) -> None:
    """A collection with other vectors raises NotReady, which names the vectors and the way out."""
    client = QdrantClient(":memory:")
    client.create_collection("images", {"meaning": models.VectorParams(size=3, distance=models.Distance.DOT)})
    model = QdrantReadModel(
        ServerPoints(client, QdrantSettings(collection="images")), Derivation(), threads=1, longest_s=20
    )
    with pytest.raises(NotReady, match=r"meaning \(3, Dot\).*clip \(512, Cosine\).*DARKROOM_QDRANT__COLLECTION"):
        await model.open()


async def test_the_collections_point_is_no_image(tmp_path: Path) -> None:
    """The reserved point is in no listing, scan, count or search, and cannot be read as an image."""
    async with open_read_model(QdrantSettings(path=tmp_path)) as model:
        assert await model.count() == {}
        assert await model.scan() == await model.page(None, Filters(), limit=3) == []
        assert await model.get(COLLECTION_POINT) is None
        await model.write_tombstone(COLLECTION_POINT, "anna", 9)
        assert await model.get(COLLECTION_POINT) is None
    async with open_read_model(QdrantSettings(path=tmp_path, stemming="")) as model:
        await model.check()
