"""The read model: one Qdrant collection of images, written by facts, read by queries.

Point id = image id; named vector `clip` (512, cosine). A point exists before its vector does. There is one
implementation, on a server or on the same engine in this process; one contract suite tests both against this protocol.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from schemas.values import ImageState
from streams.read_model.records import Change, Filters, HistoryEntry, Hit, ImageRecord


class ReadModel(Protocol):
    """The images. All reads but `get` and `scan` are limited to one owner. Calls raise DependencyUnavailable."""

    async def get(self, image_id: str, *, keys: Sequence[str] | None = None) -> ImageRecord | None:
        """Return one image of any owner (for the indexer), tombstones included; with `keys` as in `page`."""

    async def begin(self, record: ImageRecord, *, history: Mapping[str, HistoryEntry] | None = None) -> None:
        """Ensure that a point of at least this generation exists: insert the stub, or replace an older generation.

        Replacing removes the older generation's data, vector and history included, except the history given here.
        Another owner's point is not changed.
        """

    async def update(
        self, image_id: str, change: Callable[[ImageRecord], Change | None], *, keys: Sequence[str] = ()
    ) -> ImageRecord | None:
        """Make the change that a function returns of an image, None for none; return the image as it is afterwards.

        Of the image, at least `keys` are read, as in `page`; None is returned if it is missing. The change is made of
        the image as the function got it, as a whole: if others have changed the image meanwhile, the function is called
        again. It runs in a thread. A tombstone is returned as it is.
        """

    async def history(self, image_id: str) -> dict[str, HistoryEntry]:
        """Return an image's history entries by name."""

    async def write_tombstone(self, image_id: str, owner: str, generation: int) -> None:
        """Replace a point by a tombstone (owner, generation, deleted) without personal data or vector.

        It also replaces a point of equal generation, and is inserted if there is none; facts of lower or equal
        generations then change nothing. Another owner's point is not changed.
        """

    async def find(self, owner: str, image_ids: Sequence[str]) -> list[ImageRecord]:
        """Return those images that exist and belong to the owner, in the given order, without tombstones."""

    async def page(
        self,
        owner: str | None,
        wanted: Filters,
        *,
        limit: int,
        beyond: str | None = None,
        oldest_first: bool = False,
        keys: Sequence[str] | None = None,
    ) -> list[ImageRecord]:
        """Return a page of the owner's images, or of all owners', newest first, starting beyond that id.

        Ordered by id, which starts with the time. Images that are deleted or being deleted are excluded. A page
        shorter than the limit is the last. With `keys`, the records hold only those of their fields, besides id,
        owner, generation, state and `deleted`.
        """

    async def search_vector(
        self,
        owner: str,
        vector: Sequence[float],
        *,
        limit: int,
        min_score: float | None = None,
        keys: Sequence[str] | None = None,
    ) -> list[Hit]:
        """Return the nearest images by cosine, nearest first; the score is the cosine, of at least `min_score`."""

    async def search_words(self, owner: str, query: str, *, limit: int, keys: Sequence[str] | None = None) -> list[Hit]:
        """Return images that contain all words and quoted phrases of a query, or that have a label it names.

        Words are runs of letters and digits; case and accents are ignored. Searched are an image's text, labels (also
        in the plural), filename, tags, category and context. The score is 1.0 if all was found, else the share of the
        words that name labels. Best score first, then best BM25 score, then newest.
        """

    async def vector_of(self, image_id: str) -> list[float] | None:
        """Return the stored vector of an image."""

    async def uses_of(self, owner: str, sha256: str) -> int:
        """Return the number of this owner's images that have these bytes as their original or master.

        Images in the state `deleted`, tombstones or being deleted, do not count.
        """

    async def count(self, owner: str | None = None) -> dict[str, int]:
        """Return the number of images by state, without tombstones."""

    async def scan(
        self, *, state: ImageState | None = None, after: str | None = None, limit: int = 256
    ) -> list[ImageRecord]:
        """Return a page of all owners' images, oldest first, starting after the id `after`.

        For operators. Ordered by id, which starts with the time. Tombstones are included only with the state `deleted`.
        A page shorter than the limit is the last.
        """

    async def purge(self, image_id: str, generation: int) -> None:
        """Delete a tombstone of at most this generation; any other point is not changed."""

    async def check(self) -> None:
        """Check that the collection answers and has the right vectors."""
