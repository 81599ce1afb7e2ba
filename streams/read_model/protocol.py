"""The read model: one Qdrant collection of images, written by facts, read by queries.

Point id = image id; named vector `clip` (512, cosine). A point exists before its vector does. The adapters are
`streams.read_model.qdrant_server` and `streams.read_model.qdrant_embedded` (in this process); one contract suite
tests both against this protocol.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from pydantic import JsonValue

from schemas.values import ImageState
from streams.read_model.records import Filters, HistoryEntry, Hit, ImageRecord, StageRecord


class ReadModel(Protocol):
    """The images. Reads other than `get` and `scan` are limited to one owner. Calls raise DependencyUnavailable."""

    async def get(self, image_id: str) -> ImageRecord | None:
        """Return one image, whoever owns it (the indexer's view), tombstones included."""

    async def begin(self, record: ImageRecord, *, history: Mapping[str, HistoryEntry] | None = None) -> None:
        """Make sure a point of at least this generation exists: insert the stub, or raise an older generation.

        Raising forgets what the older generation knew, vector and history included, but for the history given here.
        Nothing happens to another owner's point.
        """

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
        """Write top-level keys, single stages, analyses and history entries, and the vector, of one generation.

        Update-only and conditional: a point that is missing, of another generation or deleted stays as it is. A None
        removes its key.
        """

    async def history(self, image_id: str) -> dict[str, HistoryEntry]:
        """Return what was written down of an image, by the names the entries were written under."""

    async def keep_history(self, image_id: str, generation: int, entries: Mapping[str, HistoryEntry]) -> None:
        """Forget all entries but these, under the same condition as `merge`."""

    async def bury(self, image_id: str, owner: str, generation: int) -> None:
        """Leave only a tombstone (owner, generation, deleted): no personal data, no vector. Lower facts bounce off.

        Of equal generations the tombstone wins. It is made even if there is no point yet, never of another owner's.
        """

    async def find(self, owner: str, image_ids: Sequence[str]) -> list[ImageRecord]:
        """Return those images that exist and belong to the owner, in the order asked, without tombstones."""

    async def page(
        self,
        owner: str | None,
        wanted: Filters,
        *,
        limit: int,
        beyond: str | None = None,
        oldest_first: bool = False,
    ) -> list[ImageRecord]:
        """Return a page of the owner's images, or of everybody's, newest first, from the first beyond that id.

        Ordered by id, which begins with the time. What is deleted, or on the way there, is not in it. A page shorter
        than the limit is the last.
        """

    async def search_vector(self, owner: str, vector: Sequence[float], *, limit: int) -> list[Hit]:
        """Return the nearest images by cosine, nearest first; the score is the cosine."""

    async def search_words(self, owner: str, words: str, *, limit: int) -> list[Hit]:
        """Return images whose text holds all the words, or that carry a label named in the words.

        Words are runs of letters and digits, whatever their case. The score is the share of the words that matched:
        1.0 when the text holds them all, else how many of them name labels. Best first, then newest.
        """

    async def vector_of(self, image_id: str) -> list[float] | None:
        """Return the stored vector of an image."""

    async def uses_of(self, owner: str, sha256: str) -> int:
        """Return how many images of this owner have these bytes as their original or master.

        Those in the state `deleted`, tombstone or on the way there, do not count.
        """

    async def count(self, owner: str | None = None) -> dict[str, int]:
        """Return the number of images by state, tombstones apart."""

    async def scan(
        self, *, state: ImageState | None = None, after: str | None = None, limit: int = 256
    ) -> list[ImageRecord]:
        """Return a page of all owners' images, oldest first, from the first whose id is greater than `after`.

        This is the operator's view. Ordered by id, which begins with the time. Tombstones come only when the state
        asked for is `deleted`. A page shorter than the limit is the last.
        """

    async def purge(self, image_id: str, generation: int) -> None:
        """Remove a tombstone of at most this generation for good. What is no tombstone, or newer, stays as it is."""

    async def check(self) -> None:
        """Prove that the collection exists with the right vectors and answers."""
