"""A collection on a Qdrant server (1.18 or later, for named vectors added to a collection)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import cast

from qdrant_client import QdrantClient, models

from streams.read_model.qdrant.connection import (
    ANSWERED_ERRORS,
    require_version,
    status_of,
    translate_qdrant_errors,
)
from streams.read_model.qdrant.parameters import apply_parameters, collection_parameters, vector_parameters
from streams.read_model.qdrant.points import (
    CollectionInfo,
    IndexSchema,
    ScoredId,
    Selected,
    StoredPoint,
    Update,
    Write,
    index_kind,
)
from streams.settings import QdrantSettings

_EXISTS, _MISSING = 409, 404


class ServerPoints:
    """A collection on a server. Implements `Points`; the client's calls are thread-safe."""

    exclusive = False

    def __init__(self, client: QdrantClient, settings: QdrantSettings) -> None:
        self._qdrant = client
        self._settings = settings
        self._name = settings.collection

    def open(self, dense: Mapping[str, models.VectorParams], sparse: Sequence[str]) -> bool:
        with translate_qdrant_errors():
            require_version(self._qdrant)
            if self._qdrant.collection_exists(self._name) or not self._create(dense, sparse):
                apply_parameters(self._qdrant, self._name, self._settings)
                return False
            return True

    def _create(self, dense: Mapping[str, models.VectorParams], sparse: Sequence[str]) -> bool:
        """Create the collection; return False if another process has, at the same time."""
        try:
            self._qdrant.create_collection(
                self._name,
                vectors_config={name: vector_parameters(self._settings, one.size) for name, one in dense.items()},
                sparse_vectors_config={
                    name: models.SparseVectorParams(modifier=models.Modifier.IDF) for name in sparse
                },
                **collection_parameters(self._settings),
            )
        except ANSWERED_ERRORS as error:
            if status_of(error) != _EXISTS:
                raise
            return False
        return True

    def describe(self) -> CollectionInfo:
        with translate_qdrant_errors():
            info = self._qdrant.get_collection(self._name)
        vectors = info.config.params.vectors
        return CollectionInfo(
            dense=vectors if isinstance(vectors, dict) else {"": vectors} if vectors is not None else {},
            sparse=frozenset(info.config.params.sparse_vectors or {}),
            indexes={key: index_kind(one.params or one.data_type) for key, one in info.payload_schema.items()},
            points=info.points_count or 0,
        )

    def add_sparse_vector(self, name: str) -> None:
        config = models.SparseVectorNameConfig(sparse=models.SparseVectorConfig(modifier=models.Modifier.IDF))
        with translate_qdrant_errors():
            try:
                self._qdrant.create_vector_name(self._name, name, config)
            except ANSWERED_ERRORS:
                if name not in self.describe().sparse:
                    raise

    def add_index(self, key: str, schema: IndexSchema) -> None:
        with translate_qdrant_errors():  # the server goes on indexing if the call times out
            self._qdrant.create_payload_index(self._name, field_name=key, field_schema=schema, wait=True)

    def write(self, operations: Sequence[Write]) -> None:
        with translate_qdrant_errors():
            try:
                self._qdrant.batch_update_points(
                    self._name,
                    [single for write in operations for single in _operations(write)],
                    wait=True,
                    ordering=models.WriteOrdering.STRONG,
                )
            except KeyError:  # a vector for a missing point, from the client's model of a server
                return
            except ANSWERED_ERRORS as error:  # the same from a server
                if status_of(error) != _MISSING or not self._qdrant.collection_exists(self._name):
                    raise

    def retrieve(self, ids: Sequence[str], payload: Selected, vectors: Sequence[str] = ()) -> list[StoredPoint]:
        with translate_qdrant_errors():
            found = self._qdrant.retrieve(
                self._name,
                list(ids),
                with_payload=_selected(payload),
                with_vectors=list(vectors) or False,
                consistency=models.ReadConsistencyType.MAJORITY,
            )
            return list(map(_point, found))

    def scroll(
        self,
        where: models.Filter,
        *,
        limit: int,
        payload: Selected,
        offset: str | None = None,
        order_by: models.OrderBy | None = None,
        vectors: Sequence[str] = (),
    ) -> tuple[list[StoredPoint], str | None]:
        with translate_qdrant_errors():
            found, following = self._qdrant.scroll(
                self._name,
                where,
                limit=limit,
                offset=offset,
                order_by=order_by,
                with_payload=_selected(payload),
                with_vectors=list(vectors) or False,
            )
            return list(map(_point, found)), None if following is None else str(following)

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[ScoredId]]:
        with translate_qdrant_errors():
            answers = self._qdrant.query_batch_points(self._name, list(requests))
            return [[ScoredId(str(point.id), point.score) for point in answer.points] for answer in answers]

    def count(self, where: models.Filter) -> int:
        with translate_qdrant_errors():
            return self._qdrant.count(self._name, where, exact=True).count

    def facet(self, key: str, where: models.Filter, limit: int) -> dict[str, int]:
        with translate_qdrant_errors():
            answer = self._qdrant.facet(self._name, key, facet_filter=where, limit=limit, exact=True)
            return {str(hit.value): hit.count for hit in answer.hits}

    def flush(self) -> None:
        """A confirmed write is on the server's disk."""

    def close(self) -> None:
        self._qdrant.close()


def _operations(write: Write) -> Iterator[models.UpdateOperation]:
    """Yield the server's operations of a write."""
    if not isinstance(write, Update):
        yield write
        return
    if write.removed:
        deletion = models.DeleteVectors(vector=list(write.removed), filter=write.where)
        yield models.DeleteVectorsOperation(delete_vectors=deletion)
    if write.vectors:
        moved = models.PointVectors(id=write.image_id, vector=dict(write.vectors))
        update = models.UpdateVectors(points=[moved], update_filter=write.where)
        yield models.UpdateVectorsOperation(update_vectors=update)
    payload = models.SetPayload(payload=dict(write.payload), filter=write.where)
    yield models.SetPayloadOperation(set_payload=payload)


def _point(record: models.Record) -> StoredPoint:
    vectors = record.vector if isinstance(record.vector, dict) else {}
    return StoredPoint(str(record.id), record.payload or {}, cast("dict[str, list[float]]", vectors))


def _selected(payload: Selected) -> bool | list[str] | models.PayloadSelectorExclude:
    return payload if isinstance(payload, bool | models.PayloadSelectorExclude) else list(payload)
