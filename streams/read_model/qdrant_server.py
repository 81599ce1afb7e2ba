"""The read model on a Qdrant server; see `qdrant_connection.MINIMUM_VERSION`.

Every write is conditional on the server, so that concurrent indexers during a rebalance cannot undo each other's.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import TypeVar, cast

from pydantic import JsonValue
from qdrant_client import QdrantClient, models

from schemas.values import ID_PATTERN, ImageState
from streams.errors import DependencyUnavailable
from streams.read_model.protocol import ReadModel
from streams.read_model.qdrant_connection import (
    ANSWERED_ERRORS,
    connect,
    require_version,
    status_of,
    translate_qdrant_errors,
)
from streams.read_model.qdrant_paging import newest, oldest, page_filter
from streams.read_model.qdrant_parameters import apply_parameters, search_params
from streams.read_model.qdrant_schema import (
    HISTORY,
    LABEL_KEYS,
    QUERY_WORDS,
    RECORD,
    SEQUENCE,
    Payload,
    equals,
    fits,
    labels_in,
    owned,
    prepare,
    share,
    to_entries,
    to_history,
    to_payload,
    to_record,
    tombstone,
    with_derived,
)
from streams.read_model.records import VECTOR, Filters, HistoryEntry, Hit, ImageRecord, StageRecord
from streams.read_model.words import words_of
from streams.settings import QdrantSettings

CONNECTIONS = 16
CANDIDATES = 1000  # newest images ranked by a word search

R = TypeVar("R")
Operation = (
    models.UpsertOperation
    | models.SetPayloadOperation
    | models.OverwritePayloadOperation
    | models.UpdateVectorsOperation
    | models.DeleteVectorsOperation
    | models.DeleteOperation
)


class ServerReadModel:
    """A ReadModel on a server. `client` is any QdrantClient whose calls may come from several threads."""

    def __init__(self, client: QdrantClient, settings: QdrantSettings, *, threads: int = CONNECTIONS) -> None:
        self._qdrant = client
        self._settings = settings
        self._name = settings.collection
        self._longest_s = 2 * settings.timeout_s  # whole call: waiting for a thread, slow responses
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="qdrant")

    async def open(self) -> None:
        """Create the collection and indexes if missing."""
        # Without an overall timeout: indexing a large collection takes long, and the client bounds each call.
        await self._in_thread(self._open)

    def close(self) -> None:
        """Close connections and threads."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._qdrant.close()

    async def get(self, image_id: str) -> ImageRecord | None:
        found = await self._retrieve([image_id])
        return found.get(image_id)

    async def begin(self, record: ImageRecord, *, history: Mapping[str, HistoryEntry] | None = None) -> None:
        older = models.Filter(
            must=[
                models.HasIdCondition(has_id=[record.image_id]),
                equals("owner", record.owner),
                models.FieldCondition(key="generation", range=models.Range(lt=record.generation)),
            ]
        )
        await self._write(_replace(record.image_id, to_payload(record) | {HISTORY: to_entries(history or {})}, older))

    async def merge(
        self,
        image_id: str,
        generation: int,
        patch: Mapping[str, JsonValue],
        *,
        stages: Mapping[str, StageRecord] | None = None,
        analysis: Mapping[str, Mapping[str, JsonValue]] | None = None,
        history: Mapping[str, HistoryEntry] | None = None,
        vector: Sequence[float] | None = None,
    ) -> None:
        condition = models.Filter(
            must=[
                models.HasIdCondition(has_id=[image_id]),
                equals("generation", generation),
                equals("deleted", False),
            ]
        )
        operations: list[Operation] = []
        if patch:
            operations.append(_set(with_derived(patch), condition))
        if stages:
            records = {name: stage.model_dump(mode="json", exclude_none=True) for name, stage in stages.items()}
            operations.append(_set(records, condition, key="stages"))
        if analysis:
            operations.append(_set({name: dict(keys) for name, keys in analysis.items()}, condition, key="analysis"))
        if history:
            operations.append(_set(to_entries(history), condition, key=HISTORY))
        if vector is not None:  # last, since it alone fails for a missing point, after the others are applied
            update = models.UpdateVectors(
                points=[models.PointVectors(id=image_id, vector={VECTOR: list(vector)})], update_filter=condition
            )
            operations.append(models.UpdateVectorsOperation(update_vectors=update))
        if operations:
            await self._write(operations)

    async def history(self, image_id: str) -> dict[str, HistoryEntry]:
        def read() -> dict[str, HistoryEntry]:
            found = self._qdrant.retrieve(
                self._name, [image_id], with_payload=[HISTORY], consistency=models.ReadConsistencyType.MAJORITY
            )
            return to_history(found[0].payload or {}) if found else {}

        return await self._call(read) if re.match(ID_PATTERN, image_id) else {}

    async def keep_history(self, image_id: str, generation: int, entries: Mapping[str, HistoryEntry]) -> None:
        await self.merge(image_id, generation, {HISTORY: to_entries(entries)})

    async def write_tombstone(self, image_id: str, owner: str, generation: int) -> None:
        alive = models.Filter(
            must=[
                models.HasIdCondition(has_id=[image_id]),
                equals("owner", owner),
                models.FieldCondition(key="generation", range=models.Range(lte=generation)),
            ],
            must_not=[models.Filter(must=[equals("generation", generation), equals("deleted", True)])],
        )
        await self._write(_replace(image_id, tombstone(image_id, owner, generation), alive))

    async def find(self, owner: str, image_ids: Sequence[str]) -> list[ImageRecord]:
        return await self._not_deleted(owner, image_ids)

    async def _not_deleted(self, owner: str | None, image_ids: Sequence[str]) -> list[ImageRecord]:
        found = await self._retrieve(list(dict.fromkeys(image_ids)))
        records = (found[image_id] for image_id in image_ids if image_id in found)
        return [record for record in records if owner in (None, record.owner) and not record.deleted]

    async def page(
        self,
        owner: str | None,
        wanted: Filters,
        *,
        limit: int,
        beyond: str | None = None,
        oldest_first: bool = False,
    ) -> list[ImageRecord]:
        filters, walk = page_filter(owner, wanted), oldest if oldest_first else newest
        found: list[ImageRecord] = []
        while True:  # continue if images of the page were deleted while it was read
            ids = await self._call(partial(walk, self._qdrant, self._name, filters, beyond, limit))
            found += await self._not_deleted(owner, ids)
            if len(ids) < limit or len(found) >= limit:
                return found[:limit]
            beyond = ids[-1]

    async def search_vector(self, owner: str, vector: Sequence[float], *, limit: int) -> list[Hit]:
        def search() -> list[Hit]:
            answer = self._qdrant.query_points(
                self._name,
                query=list(vector),
                using=VECTOR,
                query_filter=owned(owner),
                search_params=search_params(self._settings),
                limit=limit,
                with_payload=RECORD,
            )
            return [Hit(to_record(point.payload or {}), point.score, ("meaning",)) for point in answer.points]

        return await self._call(search)

    async def search_words(self, owner: str, words: str, *, limit: int) -> list[Hit]:
        wanted = words_of(words)[:QUERY_WORDS]
        if not wanted:
            return []
        # Queries only words as tokenised here, so that both adapters match alike.
        contains = models.FieldCondition(key="text", match=models.MatchText(text=" ".join(wanted)))
        names = labels_in(wanted)
        has_label = models.FieldCondition(key=LABEL_KEYS, match=models.MatchAny(any=sorted(names)))
        by_text, by_label = await asyncio.gather(self._newest(owner, contains), self._newest(owner, has_label))
        texts = {str(point.id) for point in by_text}
        shares = {str(point.id): share(wanted, names.intersection(_label_keys(point))) for point in by_label}
        scores = {image_id: 1.0 if image_id in texts else shares[image_id] for image_id in texts | shares.keys()}
        ranked = sorted(sorted(scores, reverse=True), key=lambda image_id: -scores[image_id])[:limit]
        records = {record.image_id: record for record in await self.find(owner, ranked)}
        return [
            Hit(records[i], scores[i], ("text",) * (i in texts) + ("label",) * (i in shares))
            for i in ranked
            if i in records
        ]

    async def vector_of(self, image_id: str) -> list[float] | None:
        def read() -> list[float] | None:
            found = self._qdrant.retrieve(self._name, [image_id], with_payload=False, with_vectors=[VECTOR])
            vectors = found[0].vector if found else None
            vector = vectors.get(VECTOR) if isinstance(vectors, dict) else None
            return cast("list[float]", vector) if vector else None

        return await self._call(read)

    async def uses_of(self, owner: str, sha256: str) -> int:
        either = [equals("original.sha256", sha256), equals("master.sha256", sha256)]
        going = [equals("state", ImageState.DELETED.value)]
        same = models.Filter(must=[equals("owner", owner)], must_not=going, should=either)
        return await self._call(lambda: self._qdrant.count(self._name, same, exact=True).count)

    async def count(self, owner: str | None = None) -> dict[str, int]:
        living = owned(owner) if owner is not None else models.Filter(must=[equals("deleted", False)])

        def facet() -> dict[str, int]:
            answer = self._qdrant.facet(self._name, "state", facet_filter=living, limit=len(ImageState), exact=True)
            return {str(hit.value): hit.count for hit in answer.hits}

        return await self._call(facet)

    async def scan(
        self, *, state: ImageState | None = None, after: str | None = None, limit: int = 256
    ) -> list[ImageRecord]:
        wanted = equals("deleted", False) if state is None else equals("state", state.value)

        def read() -> list[ImageRecord]:  # Qdrant's scroll includes the offset id: fetch one more and drop that one
            points, _ = self._qdrant.scroll(
                self._name, models.Filter(must=[wanted]), limit=limit + 1, offset=after, with_payload=RECORD
            )
            return [to_record(point.payload or {}) for point in points if point.id != after][:limit]

        return await self._call(read)

    async def purge(self, image_id: str, generation: int) -> None:
        buried = models.Filter(
            must=[
                models.HasIdCondition(has_id=[image_id]),
                equals("deleted", True),
                models.FieldCondition(key="generation", range=models.Range(lte=generation)),
            ]
        )
        await self._write([models.DeleteOperation(delete=models.FilterSelector(filter=buried))])

    async def check(self) -> None:
        if not await self._call(lambda: fits(self._qdrant, self._name)):
            raise DependencyUnavailable(f"Qdrant collection {self._name} no longer has the required vectors")

    def _open(self) -> None:
        require_version(self._qdrant)
        prepare(self._qdrant, self._settings, indexes=True)
        if self._settings.url:
            apply_parameters(self._qdrant, self._name, self._settings)

    async def _in_thread(self, work: Callable[[], R]) -> R:
        def guarded() -> R:
            with translate_qdrant_errors():
                return work()

        return await asyncio.get_running_loop().run_in_executor(self._pool, guarded)

    async def _call(self, work: Callable[[], R]) -> R:
        try:
            async with asyncio.timeout(self._longest_s):
                return await self._in_thread(work)
        except TimeoutError as error:
            raise DependencyUnavailable(f"Qdrant did not answer within {self._longest_s:g} s") from error

    async def _write(self, operations: Sequence[Operation]) -> None:
        def write() -> None:
            try:
                self._qdrant.batch_update_points(
                    self._name, operations, wait=True, ordering=models.WriteOrdering.STRONG
                )
            except KeyError:  # a vector for a missing point, from the in-process client
                return
            except ANSWERED_ERRORS as error:  # the same from a server
                if status_of(error) != 404 or not self._qdrant.collection_exists(self._name):
                    raise

        await self._call(write)

    async def _retrieve(self, image_ids: Sequence[str]) -> dict[str, ImageRecord]:
        ids = [image_id for image_id in image_ids if re.match(ID_PATTERN, image_id)]  # an invalid id fails the call
        if not ids:
            return {}
        points = await self._call(
            lambda: self._qdrant.retrieve(
                self._name, ids, with_payload=RECORD, consistency=models.ReadConsistencyType.MAJORITY
            )
        )
        return {str(point.id): to_record(point.payload or {}) for point in points}

    async def _newest(self, owner: str, condition: models.FieldCondition) -> list[models.Record]:
        wanted = owned(owner, condition)
        order = models.OrderBy(key=SEQUENCE, direction=models.Direction.DESC)
        return await self._call(
            lambda: self._qdrant.scroll(
                self._name, wanted, limit=CANDIDATES, order_by=order, with_payload=[LABEL_KEYS], with_vectors=False
            )[0]
        )


def _set(payload: Mapping[str, JsonValue], where: models.Filter, key: str | None = None) -> Operation:
    return models.SetPayloadOperation(set_payload=models.SetPayload(payload=dict(payload), filter=where, key=key))


def _replace(image_id: str, payload: Payload, where: models.Filter) -> list[Operation]:
    """Insert a point, or replace one that matches the filter: delete its vector, then overwrite its payload.

    The vector comes first: after a crash in between the filter still matches, so that the repeated fact completes it.
    """
    point = models.PointStruct(id=image_id, vector={}, payload=dict(payload))
    insert = models.PointsList(points=[point], update_mode=models.UpdateMode.INSERT_ONLY)
    return [
        models.UpsertOperation(upsert=insert),
        models.DeleteVectorsOperation(delete_vectors=models.DeleteVectors(vector=[VECTOR], filter=where)),
        models.OverwritePayloadOperation(overwrite_payload=models.SetPayload(payload=dict(payload), filter=where)),
    ]


def _label_keys(point: models.Record) -> list[str]:
    return [str(key) for key in (point.payload or {}).get(LABEL_KEYS, [])]


@asynccontextmanager
async def open_server_read_model(settings: QdrantSettings) -> AsyncIterator[ReadModel]:
    """Open the collection on a server; DependencyUnavailable if it does not answer, NotReady if it does not fit."""
    model = ServerReadModel(connect(settings), settings, threads=settings.pool_size)
    try:
        await model.open()
        yield model
    finally:
        await asyncio.to_thread(model.close)
