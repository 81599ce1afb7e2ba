"""Qdrant's engine in this process (qdrant-edge): one shard in a folder, which one process may have open.

No search graph is built: the engine keeps the interpreter's lock meanwhile (50 s for 15 000 vectors), and the whole
process would stand still. An exact search of 100 000 vectors takes milliseconds.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import qdrant_edge as edge
from qdrant_client import models

from streams.errors import DependencyUnavailable, NotReady
from streams.read_model.qdrant.edge_translation import (
    to_filter,
    to_index,
    to_operations,
    to_order,
    to_payload_selector,
    to_point,
    to_query,
)
from streams.read_model.qdrant.points import CollectionInfo, IndexSchema, ScoredId, Selected, StoredPoint, Write

log = logging.getLogger(__name__)

RESERVE = 64 * 2**20  # bytes kept free: the engine writes mapped files, and a full disk ends the process (SIGBUS)
_LOCKED = "WouldBlock"  # in the engine's error, when another process has the folder open
_NO_POINT = "No point with id"


class EdgePoints:
    """A shard in `folder`. Implements `streams.read_model.qdrant.points.Points`."""

    exclusive = True

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._opened: edge.EdgeShard | None = None
        self._writing = threading.Lock()  # an operation list is applied as a whole before the next
        self._unflushed = False

    def open(self, dense: Mapping[str, models.VectorParams], sparse: Sequence[str]) -> bool:
        with self._errors():
            is_new = not (self._folder / "segments").exists()
            # Before the engine opens its files: it repeats the last writes into mapped ones.
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            self._need_room()
            if is_new:
                self._create(dense, sparse)
            else:
                self._opened = edge.EdgeShard.load(str(self._folder))
            return is_new

    def _create(self, dense: Mapping[str, models.VectorParams], sparse: Sequence[str]) -> None:
        # Made elsewhere and moved, so that a process killed here leaves no half of a shard.
        begun = self._folder.with_name(f"{self._folder.name}.new")
        shutil.rmtree(begun, ignore_errors=True)
        begun.mkdir(parents=True, mode=0o700)
        vectors = {
            name: edge.EdgeVectorParams(size=one.size, distance=edge.Distance.Cosine) for name, one in dense.items()
        }
        config = edge.EdgeConfig(
            vectors=vectors,
            sparse_vectors={name: edge.EdgeSparseVectorParams(modifier=edge.Modifier.Idf) for name in sparse},
        )
        edge.EdgeShard.create(str(begun), config).close()
        if self._folder.is_dir():
            self._folder.rmdir()  # empty, or it had segments
        begun.rename(self._folder)
        self._opened = edge.EdgeShard.load(str(self._folder))

    def describe(self) -> CollectionInfo:
        with self._errors():
            info = self._shard.info()
            config = self._config()
            return CollectionInfo(
                dense={
                    name: models.VectorParams(size=one["size"], distance=models.Distance(one["distance"]))
                    for name, one in config.get("vectors", {}).items()
                },
                sparse=frozenset(config.get("sparse_vectors", {})),
                indexes={key: _kind(one) for key, one in info.payload_schema.items()},
                points=info.points_count,
            )

    def _config(self) -> dict[str, dict[str, dict[str, object]]]:
        return json.loads((self._folder / "edge_config.json").read_bytes())  # type: ignore[no-any-return]

    def add_sparse_vector(self, name: str) -> None:
        self._update(edge.UpdateOperation.create_sparse_vector(name, edge.Modifier.Idf))

    def add_index(self, key: str, schema: IndexSchema) -> None:
        self._update(edge.UpdateOperation.create_field_index(key, to_index(schema)))

    def write(self, operations: Sequence[Write]) -> None:
        self._update(*to_operations(operations))

    def _update(self, *operations: edge.UpdateOperation) -> None:
        with self._errors(), self._writing:
            self._need_room()  # before each write: others fill the disk within milliseconds
            self._unflushed = True
            for operation in operations:
                try:
                    self._shard.update(operation)
                except Exception as error:
                    if _NO_POINT not in str(error):
                        raise

    def retrieve(self, ids: Sequence[str], payload: Selected, vectors: Sequence[str] = ()) -> list[StoredPoint]:
        with self._errors():
            found = self._shard.retrieve(list(ids), to_payload_selector(payload), list(vectors) or False)
            return [to_point(record) for record in found]

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
        request = edge.ScrollRequest(
            offset=offset,
            limit=limit,
            filter=to_filter(where),
            with_payload=to_payload_selector(payload),
            with_vector=list(vectors) or False,
            order_by=to_order(order_by),
        )
        with self._errors():
            found, following = self._shard.scroll(request)
            return [to_point(record) for record in found], None if following is None else str(following)

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[ScoredId]]:
        with self._errors():
            found = self._shard.query_batch(edge.QueryBatchRequest([to_query(request) for request in requests]))
            return [[ScoredId(str(point.id), point.score) for point in points] for points in found]

    def count(self, where: models.Filter) -> int:
        with self._errors():
            return self._shard.count(edge.CountRequest(exact=True, filter=to_filter(where)))

    def facet(self, key: str, where: models.Filter, limit: int) -> dict[str, int]:
        with self._errors():
            answer = self._shard.facet(edge.FacetRequest(key, limit=limit, exact=True, filter=to_filter(where)))
            return {str(hit.value): hit.count for hit in answer.hits}

    def flush(self) -> None:
        with self._errors():
            if self._unflushed:
                self._unflushed = False
                self._shard.flush()

    def close(self) -> None:
        shard, self._opened = self._opened, None
        if shard is None:
            return
        try:
            shard.flush()
        except Exception as error:
            # A full disk. What was written is in the log, which the next start repeats.
            log.warning("the read model could not be flushed", extra={"error": str(error)})
        with self._errors():
            shard.close()

    @property
    def _shard(self) -> edge.EdgeShard:
        if self._opened is None:
            raise DependencyUnavailable("the read model is closed")
        return self._opened

    def _need_room(self) -> None:
        """Raise DependencyUnavailable while the disk has less free space."""
        found = os.statvfs(self._folder.parent)
        free = found.f_bavail * found.f_frsize
        if free < RESERVE:
            raise DependencyUnavailable(
                f"the disk of the read model {self._folder} is full: {free >> 20} MB are free, {RESERVE >> 20} MB are "
                "needed"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate the engine's errors, which have no types of their own."""
        try:
            yield
        except (DependencyUnavailable, NotReady, TypeError, ValueError, KeyError, AssertionError):
            raise
        except Exception as error:
            if _LOCKED in str(error):
                raise NotReady(
                    f"the read model in {self._folder} is open in another process: stop that process, "
                    "or use a Qdrant server (DARKROOM_QDRANT__URL)"
                ) from error
            raise DependencyUnavailable(f"read model {self._folder}: {error}") from error


def _kind(index: edge.PayloadIndexInfo) -> str:
    """Return `index_kind` of the engine's index."""
    if isinstance(index.params, edge.TextIndexParams):
        return f"text by {_name_of(index.params.tokenizer)}"
    return _name_of(index.data_type)


def _name_of(member: object) -> str:
    return str(member).rpartition(".")[2].lower()
