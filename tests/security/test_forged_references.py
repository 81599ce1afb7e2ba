"""Records that name objects of another image or owner, as a forged event could: the gateway never reads the objects."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from gateway.apps.components import QueryComponents
from gateway.apps.embedded import embedded_app
from schemas.stored.results import ImageEmbedding, ReadText, StageResult
from schemas.values import (
    DEFAULT_OWNER,
    ImageState,
    Lineage,
    ModelRef,
    ObjectRef,
    Rendition,
    StageState,
    TextSpan,
    Vector,
    new_image_id,
)
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore
from streams.object_store.results import StoredResult
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord, StageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, refused, settings, unit_vector

IMAGES = "/api/v1/images"
SECRET = b"a secret of another owner"
FOREIGN = (
    "keys/0123456789abcdef.json",
    "originals/ben/aa/" + "a" * 64,
    image_key(new_image_id(), 1, "master.png"),
    f"originals/{DEFAULT_OWNER}/aa/" + "a" * 64,  # the owner's own, but originals are private
)


@dataclass(frozen=True)
class House:
    """The embedded gateway's stores and a client."""

    files: FileStore
    read_model: ReadModel
    client: httpx.AsyncClient

    async def image(self, rendition: ObjectRef | None = None, **results: ObjectRef) -> str:
        """Record a completed image with one size, `medium`, and these stage results; return its id."""
        image_id = new_image_id()
        sizes = [rendition] if rendition is not None else []
        record = ImageRecord(
            image_id=image_id, owner=DEFAULT_OWNER, generation=1, state=ImageState.COMPLETED, text="as recorded",
            renditions=tuple(
                Rendition(name="medium", object=ref, width=4, height=3, aspect_ratio=1.33, format="webp")
                for ref in sizes
            ),
            stages={name: StageRecord(state=StageState.DONE, result=ref) for name, ref in results.items()},
        )  # fmt: skip
        await self.read_model.begin(record)
        return image_id


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    """A gateway without images."""
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as read_model,
    ):
        components = QueryComponents(files=files, events=Sink(), read_model=read_model, readiness=StubReadiness())
        async with client_of(embedded_app(settings(), components)) as client:
            yield House(files, read_model, client)


@pytest.mark.parametrize("key", FOREIGN, ids=range(len(FOREIGN)))  # the keys differ between workers
async def test_bytes_outside_the_image_are_not_served(house: House, key: str) -> None:
    """A size whose object is not a file of the image is 404, also with a content type browsers display."""
    image_id = await house.image(await house.files.put(key, SECRET, content_type="image/webp"))
    refused(await house.client.get(f"{IMAGES}/{image_id}/direct"), 404, "not-found")


def stored(result: StageResult) -> bytes:
    """Return a result as the runtime stores it."""
    lineage = Lineage(
        input_sha256="a" * 64, stage="s", stage_version="1", code_version="", parameters_hash="0" * 16, duration_ms=1,
        event_id="e", computed_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return StoredResult(result=result.model_dump(mode="json"), lineage=lineage).model_dump_json().encode()


@pytest.mark.parametrize("owner", [DEFAULT_OWNER, "ben"])
async def test_only_the_owners_stored_results_are_returned(house: House, owner: str) -> None:
    """Text and vector come from the owner's results; a result of another owner exposes nothing."""
    span = TextSpan(text="stored", confidence=1, polygon=((0, 0), (1, 0), (1, 1), (0, 1)), engine="tesseract")
    model = ModelRef(name="m", sha256="c" * 64, backend="torch")
    results: dict[str, StageResult] = {
        "ocr": ReadText(content="stored", spans=(span,), policy="auto"),
        "embedder": ImageEmbedding(vector=Vector.of(unit_vector(0)), model=model),
    }
    refs = {
        stage: await house.files.put(
            f"results/{owner}/{'a' * 64}/{stage}/1/p.json", stored(result), content_type="application/json"
        )
        for stage, result in results.items()
    }
    image_id = await house.image(**refs)
    own = owner == DEFAULT_OWNER
    answer = await house.client.get(f"{IMAGES}/jobs/{image_id}.1/result")
    assert answer.json()["text"]["content"] == ("stored" if own else "as recorded")
    answer = await house.client.post("/api/v1/features", json={"image_id": image_id})
    assert (answer.status_code == 200) is own, answer.text
