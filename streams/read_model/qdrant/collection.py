"""The collection's schema: created, compared with what this version needs, and brought up to date in the background.

A reserved point describes the collection: the version of its schema, the language of its stems, and how far its points
have been brought up to date. Images are found by their id meanwhile; searches and filters by derived keys are complete
once the log says so.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, TypeVar

from pydantic import Field
from qdrant_client import models

from schemas.values import Value
from streams.errors import DependencyUnavailable, NotReady
from streams.read_model.qdrant.conditions import equals, has_id
from streams.read_model.qdrant.documents import (
    AS_TEXT,
    COLLECTION_POINT,
    INDEXES,
    LABEL_KEYS,
    OTHER_WORDS,
    RECORD,
    SCHEMA,
    SEQUENCE,
    SPARSE,
    TOKEN,
    TOMBSTONE,
    WORDS,
    Derivation,
    Payload,
    new_token,
    sequence,
    to_record,
    vectors_of_collection,
)
from streams.read_model.qdrant.points import CollectionInfo, Points, Update, index_kind
from streams.read_model.records import ImageRecord

log = logging.getLogger(__name__)

PAGE = 256  # points brought up to date between two entries of the position
LEASE_S = 60.0  # after which another process may go on with the work
RETRY_S = 10.0
PROGRESS_S = 10.0  # between two lines in the log

R = TypeVar("R")
Call = Callable[[Callable[[], Any]], Awaitable[Any]]
_DESCRIPTION = "collection"  # the payload key of the reserved point


class Description(Value):
    """What the reserved point says of the collection."""

    schema_version: int = Field(alias="schema")
    language: str = ""
    after: str | None = None  # all points up to this id are up to date; None: all are
    unfinished: bool = False
    holder: str | None = None  # the process that brings points up to date
    held_until: float = 0.0  # unix seconds


class Collection:
    """Prepares a collection and keeps it as this version needs it.

    `call` runs blocking work in a thread; `alone` is entered for each write of an image.
    """

    def __init__(
        self, points: Points, derivation: Derivation, call: Call, alone: AbstractContextManager[object]
    ) -> None:
        self._points = points
        self._derivation = derivation
        self._call = call
        self._alone = alone
        # Without others to wait for, a process goes on at once where a killed one ended.
        self._me = "exclusive" if points.exclusive else uuid.uuid4().hex

    async def prepare(self) -> None:
        """Create what is missing for a start. Raises NotReady for a collection that does not fit or is newer."""
        await self._call(self._prepare)

    def _prepare(self) -> None:
        is_new = self._points.open(vectors_of_collection(), list(SPARSE.values()))
        info = self._points.describe()
        self._require_vectors(info)
        found = self._described()
        if found is not None and found.schema_version > SCHEMA:
            raise NotReady(
                f"the Qdrant collection has schema {found.schema_version}, and this version of Darkroom knows up to "
                f"{SCHEMA}: run the newer version, or choose another collection with DARKROOM_QDRANT__COLLECTION"
            )
        self._add_vectors(info)  # at once: a write or a search of a vector that is missing fails
        if is_new or info.points == 0:
            self._add_indexes(info)
        if found is None:
            up_to_date = Description(schema=SCHEMA, language=self._language)
            outdated = Description(schema=1, language=self._language, unfinished=True)
            self._describe(up_to_date if info.points == 0 else outdated, insert=True)
        elif found.language != self._language:
            # Before the first write with other stems: a process with the former language must not rely on its own.
            self._describe(Description(schema=found.schema_version, language=self._language, unfinished=True))

    def check(self) -> None:
        """Raise DependencyUnavailable unless the collection answers and has the required vectors."""
        if not _fits(self._points.describe()):
            raise DependencyUnavailable("the Qdrant collection no longer has the required vectors")

    async def flush(self) -> None:
        """Write what the engine holds in memory to disk, so that a power failure loses little."""
        try:
            await self._call(self._points.flush)
        except DependencyUnavailable as error:
            log.warning("the read model could not be flushed", extra={"error": str(error)})

    async def bring_up_to_date(self) -> None:
        """Add missing indexes, and derive again what older versions derived. Retries until it is done."""
        while True:
            try:
                await self._call(lambda: self._add_indexes(self._points.describe()))
                if await self._bring_up_to_date():
                    return
            except DependencyUnavailable as error:
                log.warning("bringing the read model up to date goes on later", extra={"error": str(error)})
            await asyncio.sleep(RETRY_S)

    async def _bring_up_to_date(self) -> bool:
        """Return whether all points are up to date; False while another process works on them."""
        found = await self._call(self._described)
        if found is None or not self._is_outdated(found):
            return True
        found = await self._call(self._take_lease)
        if found is None:
            return False
        if not self._is_outdated(found):  # the other process ended between the reading and the lease
            return True
        after = found.after if found.unfinished and found.language == self._language else None
        total, done, said = (await self._call(self._points.describe)).points, 0, time.monotonic()
        log.info("bringing the read model up to date", extra={"images": total, "schema": SCHEMA})
        while ids := await self._call(partial(self._page, after)):
            after, done = ids[-1], done + len(ids)
            position = Description(
                schema=found.schema_version, language=self._language, after=after, unfinished=True,
                holder=self._me, held_until=time.time() + LEASE_S,
            )  # fmt: skip
            await self._call(partial(self._describe, position))
            if time.monotonic() - said > PROGRESS_S:
                said = time.monotonic()
                log.info("bringing the read model up to date", extra={"images": total, "done": done})
        await self._call(lambda: self._describe(Description(schema=SCHEMA, language=self._language)))
        log.info("the read model is up to date", extra={"images": done, "schema": SCHEMA})
        return True

    def _is_outdated(self, found: Description) -> bool:
        return found.unfinished or found.schema_version < SCHEMA or found.language != self._language

    def _take_lease(self) -> Description | None:
        """Return the description as it is with the lease taken; None while another process has it."""
        free = models.Filter(
            must=[has_id(COLLECTION_POINT)],
            should=[
                models.IsEmptyCondition(is_empty=models.PayloadField(key=f"{_DESCRIPTION}.holder")),
                models.FieldCondition(key=f"{_DESCRIPTION}.held_until", range=models.Range(lt=time.time())),
                equals(f"{_DESCRIPTION}.holder", self._me),
            ],
        )
        held: Payload = {"holder": self._me, "held_until": time.time() + LEASE_S}
        lease = models.SetPayload(payload=held, filter=free, key=_DESCRIPTION)
        self._points.write([models.SetPayloadOperation(set_payload=lease)])
        found = self._described()
        return found if found is not None and found.holder == self._me else None

    def _page(self, after: str | None) -> list[str]:
        """Derive the keys of a page of points again; return their ids."""
        found, _ = self._points.scroll(
            models.Filter(must_not=[has_id(COLLECTION_POINT)]), limit=PAGE + 1, offset=after, payload=RECORD
        )
        page = [point for point in found if point.id != after][:PAGE]
        stale = {point.id: to_record(point.payload) for point in page}
        while stale:
            for record in stale.values():
                with self._alone:
                    self._points.write([self._derived(record)])
            # What was written meanwhile has derived its own keys only.
            now = self._points.retrieve(list(stale), RECORD)
            written = {point.id: to_record(point.payload) for point in now}
            stale = {i: record for i, record in written.items() if _version(record) != _version(stale[i])}
        return [point.id for point in page]

    def _derived(self, record: ImageRecord) -> Update:
        """Return the write that derives one record's keys and vectors, unless it is written meanwhile."""
        point = self._derivation.point(record)
        payload = point.payload or {}
        derived = {key: payload.get(key) for key in _REWRITTEN if key in payload or key in _WORDS}
        derived[TOKEN] = new_token()  # an update that has read the former words is made again
        unchanged = models.Filter(
            must=[
                has_id(record.image_id),
                equals("generation", record.generation),
                equals("updated_at", record.updated_at)
                if record.updated_at is not None
                else models.IsEmptyCondition(is_empty=models.PayloadField(key="updated_at")),
            ]
        )
        vectors = point.vector if isinstance(point.vector, dict) else {}
        stale = [name for name in SPARSE.values() if name not in vectors]
        return Update(record.image_id, unchanged, derived, vectors, stale)

    def _add_indexes(self, info: CollectionInfo) -> None:
        """Add the indexes that the collection lacks."""
        for key, schema in INDEXES.items():
            if info.indexes.get(key) != index_kind(schema):
                if info.points:
                    log.info("indexing the read model", extra={"key": key, "images": info.points})
                self._points.add_index(key, schema)

    def _add_vectors(self, info: CollectionInfo) -> None:
        """Add the vectors of words that the collection lacks."""
        for name in SPARSE.values():
            if name not in info.sparse:
                log.info("adding a vector to the read model", extra={"vector": name, "images": info.points})
                self._points.add_sparse_vector(name)

    @property
    def _language(self) -> str:
        return self._derivation.analyzer.language

    def _described(self) -> Description | None:
        found = self._points.retrieve([COLLECTION_POINT], True)
        return Description.model_validate(found[0].payload[_DESCRIPTION]) if found else None

    def _describe(self, description: Description, *, insert: bool = False) -> None:
        payload = {
            # A tombstone without owner and state: no listing, count or scan includes it.
            TOMBSTONE: 1,
            SEQUENCE: sequence(COLLECTION_POINT),
            _DESCRIPTION: description.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        point = models.PointStruct(id=COLLECTION_POINT, vector={}, payload=payload)
        mode = models.UpdateMode.INSERT_ONLY if insert else models.UpdateMode.UPSERT
        self._points.write([models.UpsertOperation(upsert=models.PointsList(points=[point], update_mode=mode))])

    def _require_vectors(self, info: CollectionInfo) -> None:
        if not _fits(info):
            needed = _shapes(vectors_of_collection())
            raise NotReady(
                f"the Qdrant collection has the vectors {_shapes(info.dense)} and {needed} is needed: choose another "
                "collection with DARKROOM_QDRANT__COLLECTION; the reprocess command fills it from the stored images"
            )


_WORDS = frozenset({*WORDS.values(), OTHER_WORDS})
_REWRITTEN = frozenset({SEQUENCE, TOMBSTONE, LABEL_KEYS, *_WORDS, *AS_TEXT})


def _version(record: ImageRecord) -> tuple[int, str | None]:
    return record.generation, record.updated_at


def _fits(info: CollectionInfo) -> bool:
    return all(
        name in info.dense and (info.dense[name].size, info.dense[name].distance) == (one.size, one.distance)
        for name, one in vectors_of_collection().items()
    )


def _shapes(vectors: Any) -> str:
    shapes: Sequence[str] = [f"{name or 'unnamed'} ({one.size}, {one.distance.value})" for name, one in vectors.items()]
    return ", ".join(shapes) or "none"
