"""The read model in process of earlier versions: qdrant-client's local mode, and an index in memory for all but ids.

Kept as the baseline of `bench.read_model`, with the calls that it measures and nothing else. Local mode evaluates
filters in Python on every payload, so none are used; all calls run in one thread.
"""

from __future__ import annotations

import asyncio
import warnings
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from heapq import nlargest
from pathlib import Path
from typing import TypeVar

from pydantic import JsonValue
from qdrant_client import QdrantClient, models

from streams.read_model.records import DIMENSIONS, VECTOR, Change, Filters, HistoryEntry, Hit, ImageRecord
from streams.read_model.words import label_key, words_of

NAME = "images"
PAGE = 500
LABEL_WORDS = 3

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Entry:
    """Indexed fields of an image."""

    owner: str
    state: str
    text: str  # its words, separated and enclosed by single spaces
    label_keys: tuple[str, ...]

    @classmethod
    def of(cls, record: ImageRecord) -> Entry:
        """Return the index entry of a record."""
        text = f" {' '.join(words_of(record.text or ''))} "
        return cls(record.owner, record.state.value, text, tuple(map(label_key, record.labels)))


class LocalModeReadModel:
    """Some calls of a ReadModel."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index: dict[str, Entry] = {}
        self._pool = ThreadPoolExecutor(1)

    async def open(self) -> None:
        """Open the folder, create the collection if missing, build the index."""
        await self._call(self._open)

    async def close(self) -> None:
        """Close the folder."""
        await self._call(self._qdrant.close)
        self._pool.shutdown()

    async def fill(self, page: Iterable[tuple[ImageRecord, Mapping[str, HistoryEntry], list[float]]]) -> None:
        """Write whole records, which are found after the folder is opened again."""
        points = [_point(record, history, vector) for record, history, vector in page]
        await self._call(lambda: self._qdrant.upsert(NAME, points))

    async def get(self, image_id: str, *, keys: Sequence[str] | None = None) -> ImageRecord | None:
        return await self._call(lambda: self._get(image_id))

    async def begin(self, record: ImageRecord, *, history: Mapping[str, HistoryEntry] | None = None) -> None:
        def write() -> None:
            known = self._get(record.image_id)
            if known is None or (known.owner == record.owner and known.generation < record.generation):
                payload = record.model_dump(mode="json", exclude_none=True)
                self._put(record.image_id, payload | {"history": _entries(history or {})}, {})

        await self._call(write)

    async def update(
        self, image_id: str, change: Callable[[ImageRecord], Change | None], *, keys: Sequence[str] = ()
    ) -> ImageRecord | None:
        def write() -> ImageRecord | None:
            known = self._get(image_id)
            made = change(known) if known is not None and not known.deleted else None
            if made is None:
                return known
            (found,) = self._qdrant.retrieve(NAME, [image_id], with_payload=True, with_vectors=True)
            payload = {**(found.payload or {}), **made.patch}
            for name, stage in made.stages.items():
                payload.setdefault("stages", {})[name] = stage.model_dump(mode="json", exclude_none=True)
            payload["history"] = payload.get("history", {}) | _entries(made.history)
            kept = found.vector if isinstance(found.vector, dict) else {}
            vectors = kept if made.vector is None else {VECTOR: list(made.vector)}
            self._put(image_id, {key: value for key, value in payload.items() if value is not None}, vectors)
            return self._get(image_id)

        return await self._call(write)

    async def history(self, image_id: str) -> dict[str, HistoryEntry]:
        def read() -> dict[str, HistoryEntry]:
            found = self._qdrant.retrieve(NAME, [image_id], with_payload=["history"])
            entries = (found[0].payload or {}).get("history", {}) if found else {}
            return {name: HistoryEntry.model_validate(entry) for name, entry in entries.items()}

        return await self._call(read)

    async def page(self, owner: str, wanted: Filters, *, limit: int, beyond: str | None = None) -> list[ImageRecord]:
        def read() -> list[ImageRecord]:
            mine = (i for i, entry in self._index.items() if entry.owner == owner and (beyond is None or i < beyond))
            ids = nlargest(limit, mine)
            return sorted(self._records(ids), key=lambda record: record.image_id, reverse=True)

        return await self._call(read)

    async def search_vector(self, owner: str, vector: Sequence[float], *, limit: int) -> list[Hit]:
        def search() -> list[Hit]:
            fetched = limit
            while True:  # fetch more until enough are the owner's: cheaper than a filter
                points = self._qdrant.query_points(
                    NAME, query=list(vector), using=VECTOR, limit=fetched, with_payload=False
                ).points
                scores = {str(p.id): p.score for p in points if self._index[str(p.id)].owner == owner}
                if len(scores) >= limit or len(points) < fetched:
                    break
                fetched *= 4
            return [Hit(one, scores[one.image_id], ("meaning",)) for one in self._records(list(scores)[:limit])]

        return await self._call(search)

    async def search_words(self, owner: str, words: str, *, limit: int) -> list[Hit]:
        wanted = words_of(words)
        whole = [f" {word} " for word in wanted]
        names = frozenset(
            " ".join(wanted[start : start + size])
            for size in range(1, LABEL_WORDS + 1)
            for start in range(len(wanted) - size + 1)
        )

        def search() -> list[Hit]:
            matches: dict[str, tuple[float, tuple[str, ...]]] = {}
            for image_id, entry in self._index.items():
                if entry.owner != owner:
                    continue
                contains = all(word in entry.text for word in whole)
                covered = {word for key in names.intersection(entry.label_keys) for word in key.split()}
                share = len(covered) / len(set(wanted))
                if contains or share:
                    matches[image_id] = (1.0 if contains else share, ("text",) * contains + ("label",) * (share > 0))
            ranked = sorted(sorted(matches, reverse=True), key=lambda image_id: -matches[image_id][0])[:limit]
            return [Hit(record, *matches[record.image_id]) for record in self._records(ranked)]

        return await self._call(search)

    async def count(self, owner: str | None = None) -> dict[str, int]:
        return await self._call(
            lambda: dict(Counter(entry.state for entry in self._index.values() if owner in (None, entry.owner)))
        )

    async def _call(self, work: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def _open(self) -> None:
        warnings.simplefilter("ignore")  # it warns of more than 20 000 points
        self._qdrant = QdrantClient(path=str(self._folder))
        if not self._qdrant.collection_exists(NAME):
            params = models.VectorParams(size=DIMENSIONS, distance=models.Distance.COSINE)
            self._qdrant.create_collection(NAME, vectors_config={VECTOR: params})
        offset: models.ExtendedPointId | None = None
        while True:
            points, offset = self._qdrant.scroll(NAME, limit=PAGE, offset=offset, with_payload=True)
            for point in points:
                self._index[str(point.id)] = Entry.of(ImageRecord.model_validate(point.payload or {}))
            if offset is None:
                return

    def _get(self, image_id: str) -> ImageRecord | None:
        found = self._records([image_id])
        return found[0] if found else None

    def _records(self, image_ids: Sequence[str]) -> list[ImageRecord]:
        known = [image_id for image_id in image_ids if image_id in self._index]
        points = self._qdrant.retrieve(NAME, known, with_payload=True) if known else []
        return [ImageRecord.model_validate(point.payload or {}) for point in points]

    def _put(self, image_id: str, payload: Mapping[str, JsonValue], vectors: Mapping[str, object]) -> None:
        point = models.PointStruct(id=image_id, vector=dict(vectors), payload=dict(payload))
        self._qdrant.upsert(NAME, [point])
        self._index[image_id] = Entry.of(ImageRecord.model_validate(payload))


@asynccontextmanager
async def open_local_mode(folder: Path) -> AsyncIterator[LocalModeReadModel]:
    """Open the read model in a folder."""
    model = LocalModeReadModel(folder)
    await model.open()
    try:
        yield model
    finally:
        await model.close()


def _entries(entries: Mapping[str, HistoryEntry]) -> dict[str, JsonValue]:
    return {name: entry.model_dump(mode="json", exclude_none=True) for name, entry in entries.items()}


def _point(record: ImageRecord, history: Mapping[str, HistoryEntry], vector: list[float]) -> models.PointStruct:
    payload = record.model_dump(mode="json", exclude_none=True) | {"history": _entries(history)}
    return models.PointStruct(id=record.image_id, vector={VECTOR: vector}, payload=payload)
