"""The read model: one Qdrant collection of images, written by facts, read by queries.

Point id = image id; named vector `clip` (512, cosine). A point exists before its vector does. The adapters are
`streams.vectors_server` and `streams.vectors_local` (in this process); one contract suite holds both to what is
said here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from pydantic import Field, JsonValue

from schemas.results import CaptureDetails, Colour
from schemas.values import DetectedObject, ImageState, ObjectRef, Rendition, StageState, Value
from streams.breaker import Breakers
from streams.settings import QdrantSettings

VECTOR = "clip"
DIMENSIONS = 512
HISTORY_LIMIT = 200  # entries of one image


class StageRecord(Value):
    """What is known of one stage of one image."""

    state: StageState
    run: int = 0  # the rerun that said this; 0 = the first run
    version: str = ""
    attempts: int = 1
    duration_ms: int = 0
    reused: bool = False
    reason: str | None = None  # an ErrorCode, when skipped, rejected or failed
    message: str | None = None
    result: ObjectRef | None = None
    finished_at: str | None = None


class HistoryEntry(Value):
    """One fact, as the indexer met it. Kept beside the record, and not part of it."""

    event_id: str
    type: str
    generation: int
    stage: str
    state: StageState | None = None  # None: no stage said this
    reason: str | None = None  # an ErrorCode
    attempts: int | None = None
    duration_ms: int | None = None
    reused: bool = False
    version: str | None = None
    run: int = 0
    worker: str | None = None  # who said it
    occurred_at: str
    recorded_at: str  # when the log took it
    trace_id: str | None = None
    topic: str | None = None
    partition: int | None = None
    offset: int | None = None


class ImageRecord(Value):
    """One image as the read model knows it."""

    image_id: str
    owner: str
    generation: int
    state: ImageState = ImageState.PROCESSING
    deleted: bool = False
    required: tuple[str, ...] = ()
    stages: dict[str, StageRecord] = Field(default_factory=dict)
    bucket: str = "default"
    filename: str | None = None
    source_url: str | None = None
    tags: tuple[str, ...] = ()
    category: str | None = None
    context: dict[str, JsonValue] = Field(default_factory=dict)
    revision: int = 0  # of tags, category and context: 0 = as they were submitted
    revised_at: str | None = None
    original: ObjectRef | None = None
    master: ObjectRef | None = None
    width: int | None = None
    height: int | None = None
    source_format: str | None = None
    frames: int | None = None
    has_alpha: bool | None = None
    perceptual_hash: str | None = None
    dominant_colour: str | None = None
    palette: tuple[Colour, ...] = ()
    thumbhash: str | None = None
    capture: CaptureDetails | None = None
    renditions: tuple[Rendition, ...] = ()
    text: str | None = None
    text_confidence: float | None = None
    objects: tuple[DetectedObject, ...] = ()
    labels: tuple[str, ...] = ()
    has_vector: bool = False
    error_code: str | None = None
    error_message: str | None = None
    submitted_at: str | None = None
    updated_at: str | None = None
    finished_at: str | None = None
    finished_by: str | None = None  # ce_id of the fact that completed it: only that fact says the outcome


@dataclass(frozen=True, slots=True)
class Hit:
    """One answer of a search."""

    record: ImageRecord
    score: float
    matched: tuple[str, ...]  # of: "meaning", "text", "label"


@dataclass(frozen=True, slots=True)
class Filters:
    """Which images a listing is of; what is None or empty leaves the choice free."""

    state: ImageState | None = None
    bucket: str | None = None
    labels: tuple[str, ...] = ()  # all of them, whatever their case
    tags: tuple[str, ...] = ()  # all of them, as they were written
    category: str | None = None
    since: datetime | None = None  # submitted then or later
    until: datetime | None = None  # submitted earlier
    text: str | None = None  # words that are all in the image's text


class ReadModel(Protocol):
    """The images. Each read but `get` and `scan` is within one owner. Calls raise streams.errors.DependencyAway."""

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
        history: Mapping[str, HistoryEntry] | None = None,
        vector: Sequence[float] | None = None,
    ) -> None:
        """Write top-level keys, single stages and entries, and the vector, if the point is of exactly this generation.

        Update-only and conditional: a point that is missing, newer or deleted stays as it is. A None removes its key.
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


def open_read_model(
    settings: QdrantSettings, breakers: Breakers | None = None
) -> AbstractAsyncContextManager[ReadModel]:
    """Open the read model: a Qdrant server when a URL is given, else in this process; behind breakers, if given.

    Creates what is missing. Entering raises DependencyAway when the server does not answer, NotReady when the
    collection does not fit or another process has the folder open.
    """
    # Imported late: these modules import this one, and a process without a read model needs no Qdrant client.
    if breakers is not None:
        from streams.vectors_breaking import open_breaking  # noqa: PLC0415

        return open_breaking(open_read_model(settings), breakers)
    if settings.url:
        from streams.vectors_server import open_server_read_model  # noqa: PLC0415

        return open_server_read_model(settings)
    from streams.vectors_local import open_local_read_model  # noqa: PLC0415

    return open_local_read_model(settings)
