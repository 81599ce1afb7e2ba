"""The calls that the read model makes on Qdrant: on a server, or on its engine in this process.

Arguments are qdrant-client's models; `edge_translation` translates them for the engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from qdrant_client import models

Selected = bool | Sequence[str] | models.PayloadSelectorExclude
IndexSchema = models.PayloadSchemaType | models.KeywordIndexParams | models.TextIndexParams


class Update(NamedTuple):
    """Changes of a point, if it matches a filter: of vectors first, because the filter may name what `payload` sets.

    A tuple: building and translating the client's models takes as long as the engine's work.
    """

    image_id: str
    where: models.Filter
    payload: Mapping[str, Any]  # keys of the top level; None removes one
    vectors: Mapping[str, Any] = {}
    removed: Sequence[str] = ()  # vectors


Write = Update | models.UpsertOperation | models.SetPayloadOperation | models.DeleteOperation


class StoredPoint(NamedTuple):
    """A point as it was read. A tuple: building the client's models takes as long as a search."""

    id: str
    payload: Mapping[str, Any]  # what was selected
    vectors: Mapping[str, list[float]]  # what was selected


class ScoredId(NamedTuple):
    """A point that a query found."""

    id: str
    score: float


@dataclass(frozen=True, slots=True)
class CollectionInfo:
    """What a collection has."""

    dense: Mapping[str, models.VectorParams]
    sparse: frozenset[str]
    indexes: Mapping[str, str]  # payload key -> `index_kind` of its index
    points: int  # approximate


class Points(Protocol):
    """One collection. Calls block, may come from several threads, and raise DependencyUnavailable."""

    exclusive: bool  # no other process has the collection open

    def open(self, dense: Mapping[str, models.VectorParams], sparse: Sequence[str]) -> bool:
        """Open the collection; create it with these vectors if it is missing, and return whether it was. NotReady."""

    def describe(self) -> CollectionInfo:
        """Return what the collection has."""

    def add_sparse_vector(self, name: str) -> None:
        """Add a sparse vector with inverse document frequency; nothing if it exists."""

    def add_index(self, key: str, schema: IndexSchema) -> None:
        """Index a payload key, replacing an index of another kind. May take minutes on many points."""

    def write(self, operations: Sequence[Write]) -> None:
        """Apply operations in order, durably. After an `Update` of a missing point the others may not be applied."""

    def retrieve(self, ids: Sequence[str], payload: Selected, vectors: Sequence[str] = ()) -> list[StoredPoint]:
        """Return the points that exist, in no order."""

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
        """Return points by id, or in an order, and the id at which the next page begins."""

    def query(self, requests: Sequence[models.QueryRequest]) -> list[list[ScoredId]]:
        """Return the points nearest to each query, best first."""

    def count(self, where: models.Filter) -> int:
        """Return the exact number of points."""

    def facet(self, key: str, where: models.Filter, limit: int) -> dict[str, int]:
        """Return the exact number of points by value of an indexed key."""

    def flush(self) -> None:
        """Write everything to disk."""

    def close(self) -> None:
        """Write what is not on disk yet, and release everything."""


def index_kind(schema: Any) -> str:
    """Return what distinguishes an index: its type and, of a text index, its tokenizer."""
    if isinstance(schema, models.TextIndexParams):
        return f"text by {schema.tokenizer.value if schema.tokenizer else 'word'}"
    return str(schema.value if isinstance(schema, models.PayloadSchemaType) else schema.type.value)
