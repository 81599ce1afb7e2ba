"""Read models of each kind, and records to write to them."""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

from pydantic import JsonValue
from qdrant_client import QdrantClient

from schemas.values import ObjectRef, new_image_id
from streams.read_model.protocol import ReadModel
from streams.read_model.qdrant.documents import Derivation
from streams.read_model.qdrant.model import QdrantReadModel
from streams.read_model.qdrant.server_points import ServerPoints
from streams.read_model.records import DIMENSIONS, Change, HistoryEntry, ImageRecord, StageRecord
from streams.read_model.words import Analyzer
from streams.settings import QdrantSettings


@asynccontextmanager
async def in_memory(name: str, language: str = "") -> AsyncIterator[QdrantReadModel]:
    """A read model by the server's calls, on qdrant-client's model of a server."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it needs no indexes
        points = ServerPoints(QdrantClient(":memory:"), QdrantSettings(collection=name))
        calls = QdrantReadModel(points, Derivation(Analyzer(language)), threads=1, longest_s=20)
        await calls.open()
        yield calls
        await calls.close()


def stub(image_id: str | None = None, owner: str = "anna", generation: int = 1, **more: object) -> ImageRecord:
    """Return a record that has only been begun."""
    return ImageRecord(
        image_id=image_id or new_image_id(), owner=owner, generation=generation, required=("sanitizer", "ocr")
    ).model_copy(update=more)


def vector(seed: int) -> list[float]:
    """Return a unit vector that depends on the seed only."""
    generator = random.Random(seed)
    values = [generator.gauss(0, 1) for _ in range(DIMENSIONS)]
    norm = math.sqrt(sum(value * value for value in values))
    return [value / norm for value in values]


def ref(letter: str) -> ObjectRef:
    """Return a reference to an object whose hash is one letter."""
    return ObjectRef(bucket="b", key=f"k/{letter}", sha256=letter * 64, size=1)


async def merge(
    model: ReadModel,
    image_id: str,
    generation: int,
    patch: Mapping[str, JsonValue],
    *,
    stages: Mapping[str, StageRecord] | None = None,
    analysis: Mapping[str, Mapping[str, JsonValue]] | None = None,
    history: Mapping[str, HistoryEntry] | None = None,
    vector: Sequence[float] | None = None,
) -> None:
    """Change an image of one generation."""
    change = Change(patch, stages or {}, analysis or {}, history or {}, vector)
    await model.update(image_id, lambda known: change if known.generation == generation else None)


async def added(model: ReadModel, owner: str = "anna", seed: int | None = None, **patch: JsonValue) -> str:
    """Add an image and merge a patch; return its id."""
    record = stub(owner=owner)
    await model.begin(record)
    await merge(model, record.image_id, 1, patch, vector=None if seed is None else vector(seed))
    return record.image_id
