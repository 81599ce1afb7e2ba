"""Semantic search with recorded vectors of the official CLIP ViT-B/32, from HTTP to the read model."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from pydantic import JsonValue

from gateway.apps.components import QueryComponents
from gateway.apps.query import query_app
from schemas.values import ImageState, new_image_id
from streams.object_store.factory import open_files
from streams.read_model.factory import open_read_model
from streams.read_model.records import ImageRecord
from streams.settings import FilesSettings, QdrantSettings
from tests.support.gateway_components import Sink, StubReadiness, client_of, settings
from tests.support.read_models import merge


@dataclass
class Recorded:
    """An encoder with recorded vectors of class names."""

    vectors: dict[str, list[float]]

    def available(self) -> tuple[bool, str]:
        return True, "recorded"

    async def encode_text(self, text: str) -> list[float]:
        return self.vectors[text]

    async def encode_image(self, data: bytes) -> list[float]:
        raise ValueError(f"{len(data)} bytes without a recorded vector")


def recorded(folder: Path) -> Recorded:
    """Return an encoder of LVIS class names."""
    names = json.loads((folder / "lvis_v1_names.json").read_text())
    texts = np.load(folder / "lvis_v1_clip_a+cname.npy").astype(np.float32)
    texts /= np.linalg.norm(texts, axis=1, keepdims=True)
    return Recorded({name: row.tolist() for name, row in zip(names, texts, strict=True)})


@pytest.fixture
async def searching(models_dir: Path, tmp_path: Path) -> AsyncIterator[tuple[httpx.AsyncClient, dict[str, str]]]:
    """A query gateway over the recorded vectors of seven photos, and their names by image id."""
    folder = models_dir / "clip_vitb32_golden"
    photos = np.load(folder / "image_embs_7.npz")
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        open_read_model(QdrantSettings(path=tmp_path / "qdrant")) as vectors,
    ):
        names: dict[str, str] = {}
        for name, vector in zip(photos["names"], photos["embs"].astype(np.float32), strict=True):
            image_id = new_image_id()
            names[image_id] = str(name)
            await vectors.begin(ImageRecord(image_id=image_id, owner="default", generation=1))
            patch: dict[str, JsonValue] = {"state": ImageState.COMPLETED.value, "has_vector": True}
            await merge(vectors, image_id, 1, patch, vector=vector.tolist())
        app = query_app(
            settings(),
            QueryComponents(
                files=files, events=Sink(), read_model=vectors, encoder=recorded(folder), readiness=StubReadiness()
            ),
        )
        async with client_of(app) as client:
            yield client, names


@pytest.mark.parametrize(
    ("words", "photo"),
    [
        ("kitten", "456_123"),
        ("cat", "123_456"),
        ("street_sign", "389_535"),
        ("billboard", "389_535"),
        ("diving_board", "208_495"),
        ("surfboard", "208_495"),
        ("coconut", "321_421"),
        ("flower_arrangement", "416_264"),
    ],
)
async def test_a_class_name_ranks_the_right_photo_first(
    searching: tuple[httpx.AsyncClient, dict[str, str]], words: str, photo: str
) -> None:
    """The class name of a photo's content ranks the photo first."""
    client, names = searching
    answer = await client.get("/api/v1/search", params={"q": words, "min_similarity": 0.2})
    assert answer.status_code == 200
    body = answer.json()
    assert body["by_meaning"] is True
    assert names[body["items"][0]["image_id"]] == photo
    assert "meaning" in body["items"][0]["matched"]


@pytest.mark.parametrize(
    ("words", "photos"),
    [
        ("kitten", {"456_123", "123_456"}),
        ("street_sign", {"389_535"}),
        ("surfboard", {"208_495"}),
        ("coconut", {"321_421"}),
        ("airplane", set()),
        ("pizza", set()),
        ("saxophone", set()),
        ("zebra", set()),
    ],
)
async def test_by_default_only_similar_photos_are_found(
    searching: tuple[httpx.AsyncClient, dict[str, str]], words: str, photos: set[str]
) -> None:
    """The name of what a photo shows finds it and no other; the name of what no photo shows finds none."""
    client, names = searching
    answer = await client.get("/api/v1/search", params={"q": words})
    assert {names[item["image_id"]] for item in answer.json()["items"]} == photos


async def test_by_default_only_alike_photos_are_similar(searching: tuple[httpx.AsyncClient, dict[str, str]]) -> None:
    """The photo of a cat finds that of another cat; the photo of a church finds none."""
    client, names = searching
    ids = {name: image_id for image_id, name in names.items()}
    for name, found in (("123_456", ["456_123"]), ("524_316", [])):
        answer = await client.post("/api/v1/search/image", json={"image_id": ids[name]})
        assert [names[item["image_id"]] for item in answer.json()["items"]] == found
