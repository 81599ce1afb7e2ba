"""The read model on Qdrant: on a server or on its engine in this process, by the calls of `Points`.

Every write is conditional in the engine, so that concurrent indexers during a rebalance cannot undo each other's.
"""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import TypeVar, cast

from qdrant_client import models

from schemas.values import ID_PATTERN, ImageState
from streams.concurrency.call_threads import CallThreads
from streams.errors import DependencyUnavailable
from streams.read_model.qdrant import conditions
from streams.read_model.qdrant.collection import Collection
from streams.read_model.qdrant.conditions import equals, has_id, present
from streams.read_model.qdrant.documents import (
    COLLECTION_POINT,
    ENTRIES,
    HISTORY,
    LABEL_KEYS,
    RECORD,
    SEARCHABLE,
    TOKEN,
    TOMBSTONE,
    WORDS,
    Derivation,
    new_token,
    to_history,
    to_record,
    tombstone,
)
from streams.read_model.qdrant.paging import newest, oldest
from streams.read_model.qdrant.points import Points, Selected, StoredPoint, Write
from streams.read_model.records import VECTOR, Change, Filters, HistoryEntry, Hit, ImageRecord
from streams.read_model.words import QUERY_TOKENS, Term, contains, has_phrase, words_of

MANDATORY = ("image_id", "owner", "generation", "state", "deleted")  # read with every selection of keys
FLUSH_INTERVAL_S = 5.0
UPDATE_TRIES = 20  # each after another process has written: a few while partitions move

R = TypeVar("R")


class QdrantReadModel:
    """A ReadModel on a collection. A call may take `longest_s` seconds, waiting for a thread included."""

    def __init__(
        self,
        points: Points,
        derivation: Derivation,
        *,
        threads: int,
        longest_s: float,
        search: models.SearchParams | None = None,
    ) -> None:
        self._points = points
        self._derivation = derivation
        self._search = search
        self._longest_s = longest_s
        self._threads = CallThreads(threads, name="read-model")
        # Of a collection that no other process has open: an update is not read again to see whether it was made.
        self._alone = threading.Lock() if points.exclusive else nullcontext()
        self._collection = Collection(points, derivation, self._threads.run, self._alone)
        self._upkeep: asyncio.Task[None] | None = None

    async def open(self, fill: Callable[[], None] | None = None) -> None:
        """Create the collection if it is missing, fill it, and begin to bring an existing one up to date."""
        await self._collection.prepare()
        if fill is not None:
            await self._threads.run(fill)
        self._upkeep = asyncio.create_task(self._keep_up())

    async def close(self) -> None:
        """Stop the upkeep, and release connections, files and threads."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.gather(self._upkeep, return_exceptions=True)
        # Not bounded: what the engine holds in memory is written here.
        await self._threads.close()
        await asyncio.to_thread(self._points.close)

    async def _keep_up(self) -> None:
        await self._collection.bring_up_to_date()
        while True:
            await asyncio.sleep(FLUSH_INTERVAL_S)
            await self._collection.flush()

    async def get(self, image_id: str, *, keys: Sequence[str] | None = None) -> ImageRecord | None:
        return (await self._records([image_id], _selected(keys))).get(image_id)

    async def begin(self, record: ImageRecord, *, history: Mapping[str, HistoryEntry] | None = None) -> None:
        older = models.Filter(
            must=[
                has_id(record.image_id),
                equals("owner", record.owner),
                models.FieldCondition(key="generation", range=models.Range(lt=record.generation)),
            ]
        )
        await self._replace(record, older, history)

    async def _replace(
        self, record: ImageRecord, where: models.Filter, history: Mapping[str, HistoryEntry] | None = None
    ) -> None:
        """Insert a record's point, or replace one that matches the filter, vectors included."""
        point = self._derivation.point(record, history)
        upsert = models.PointsList(points=[point], update_filter=where)
        await self._write([models.UpsertOperation(upsert=upsert)])

    async def update(
        self, image_id: str, change: Callable[[ImageRecord], Change | None], *, keys: Sequence[str] = ()
    ) -> ImageRecord | None:
        selected = _selected([*keys, TOKEN, *ENTRIES, *(WORDS[key] for key in WORDS if key != "text")])

        def make() -> ImageRecord | None:
            written = None
            for _ in range(UPDATE_TRIES):
                payload = self._found([image_id], selected).get(image_id)
                if payload is None:
                    return None
                known = to_record(payload)
                if known.deleted or (written is not None and payload.get(TOKEN) == written):
                    return known
                made = change(known)
                if made is None:
                    return known
                written = new_token()
                update = self._derivation.update(payload, made, written, conditions.unchanged(payload))
                self._points.write([update])
                if self._points.exclusive:
                    now = {**payload, **update.payload}
                    return to_record({key: value for key, value in now.items() if value is not None})
            raise DependencyUnavailable(f"image {image_id} was changed by others in {UPDATE_TRIES} tries")

        return await self._call_writing(make)

    async def history(self, image_id: str) -> dict[str, HistoryEntry]:
        (payload,) = await self._payloads([image_id], [HISTORY]) or [{}]
        return to_history(payload)

    async def write_tombstone(self, image_id: str, owner: str, generation: int) -> None:
        alive = models.Filter(
            must=[has_id(image_id), equals("owner", owner), conditions.at_most("generation", generation)],
            must_not=[models.Filter(must=[equals("generation", generation), equals(TOMBSTONE, 1)])],
        )
        await self._replace(tombstone(image_id, owner, generation), alive)

    async def find(self, owner: str, image_ids: Sequence[str]) -> list[ImageRecord]:
        found = await self._records(list(dict.fromkeys(image_ids)))
        records = (found[image_id] for image_id in image_ids if image_id in found)
        return [record for record in records if record.owner == owner and not record.deleted]

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
        where = conditions.listed(owner, wanted, self._derivation.analyzer)
        payload = _selected(keys)

        def read() -> list[StoredPoint]:
            if oldest_first:
                return oldest(self._points, where, after=beyond, limit=limit, payload=payload)
            return newest(self._points, where, before=beyond, limit=limit, payload=payload)

        return await self._call(lambda: [to_record(point.payload) for point in read()])

    async def search_vector(
        self,
        owner: str,
        vector: Sequence[float],
        *,
        limit: int,
        min_score: float | None = None,
        keys: Sequence[str] | None = None,
    ) -> list[Hit]:
        request = conditions.by_vector(owner, vector, limit=limit, min_score=min_score, params=self._search)

        def search() -> list[Hit]:
            (near,) = self._points.query([request])
            scores = {point.id: point.score for point in near}
            payloads = self._found(list(scores), _selected(keys))
            hits = [Hit(to_record(payloads[i]), scores[i], ("meaning",)) for i in scores if i in payloads]
            return [hit for hit in hits if not hit.record.deleted]

        return await self._call(search)

    async def search_words(self, owner: str, query: str, *, limit: int, keys: Sequence[str] | None = None) -> list[Hit]:
        terms, words = self._derivation.analyzer.terms(query), words_of(query)[:QUERY_TOKENS]
        if not terms:
            return []
        names = conditions.labels_in(words)
        requests = [conditions.by_words(owner, terms)]
        # A label that one word names contains that word; a phrase is required, so that a label alone does not do.
        if len(terms) > 1 and not has_phrase(query):
            requests.append(conditions.by_labels(owner, names, [token for term in terms for token in term]))

        def search() -> list[Hit]:
            whole, *labelled = self._points.query(requests)
            scores = {point.id: (1.0, round(point.score, 3)) for point in whole}
            named = (point for points in labelled for point in points if point.id not in scores)
            rest = {point.id: round(point.score, 3) for point in named}
            for point in self._points.retrieve(list(rest), [LABEL_KEYS]) if rest else []:
                found_names = names.intersection(point.payload.get(LABEL_KEYS) or ())
                scores[point.id] = (conditions.share(words, found_names), rest[point.id])
            ranked = sorted(sorted(scores, reverse=True), key=lambda i: scores[i], reverse=True)[:limit]
            payloads = self._found(ranked, _selected(keys, *WORDS.values(), LABEL_KEYS))
            hits = (
                Hit(to_record(payloads[i]), scores[i][0], _ways(payloads[i], terms, names))
                for i in ranked
                if i in payloads
            )
            # Without a way, the image was found by the number of another token, or by words that are being replaced.
            return [hit for hit in hits if hit.matched and not hit.record.deleted]

        return await self._call(search)

    def _found(self, image_ids: Sequence[str], payload: Selected) -> dict[str, Mapping[str, object]]:
        found = self._points.retrieve(image_ids, payload) if image_ids else []
        return {point.id: point.payload for point in found}

    async def vector_of(self, image_id: str) -> list[float] | None:
        def read() -> list[float] | None:
            found = self._points.retrieve([image_id], False, [VECTOR])
            return found[0].vectors.get(VECTOR) if found else None

        return await self._call(read)

    async def uses_of(self, owner: str, sha256: str) -> int:
        either = [equals("original.sha256", sha256), equals("master.sha256", sha256)]
        going = [equals("state", ImageState.DELETED.value)]
        same = models.Filter(must=[equals("owner", owner)], must_not=going, should=either)
        return await self._call(lambda: self._points.count(same))

    async def count(self, owner: str | None = None) -> dict[str, int]:
        return await self._call(lambda: self._points.facet("state", present(owner=owner), len(ImageState)))

    async def scan(
        self, *, state: ImageState | None = None, after: str | None = None, limit: int = 256
    ) -> list[ImageRecord]:
        where = present() if state is None else models.Filter(must=[equals("state", state.value)])
        page = partial(oldest, self._points, where, after=after, limit=limit, payload=RECORD)
        return await self._call(lambda: [to_record(point.payload) for point in page()])

    async def purge(self, image_id: str, generation: int) -> None:
        buried = [has_id(image_id), equals(TOMBSTONE, 1), conditions.at_most("generation", generation)]
        selector = models.FilterSelector(filter=models.Filter(must=buried))
        await self._write([models.DeleteOperation(delete=selector)])

    async def check(self) -> None:
        await self._call(self._collection.check)

    async def _records(self, image_ids: Sequence[str], payload: Selected = RECORD) -> dict[str, ImageRecord]:
        records = map(to_record, await self._payloads(image_ids, payload))
        return {record.image_id: record for record in records}

    async def _payloads(self, image_ids: Sequence[str], payload: Selected) -> list[Mapping[str, object]]:
        # An invalid id fails the whole call.
        ids = [image_id for image_id in image_ids if re.match(ID_PATTERN, image_id) and image_id != COLLECTION_POINT]
        if not ids:
            return []
        return await self._call(lambda: [point.payload for point in self._points.retrieve(ids, payload)])

    async def _write(self, operations: Sequence[Write]) -> None:
        await self._call_writing(lambda: self._points.write(operations))

    async def _call_writing(self, work: Callable[[], R]) -> R:
        def alone() -> R:
            with self._alone:
                return work()

        return await self._call(alone)

    async def _call(self, work: Callable[[], R]) -> R:
        try:
            async with asyncio.timeout(self._longest_s):
                return await self._threads.run(work)
        except TimeoutError as error:
            raise DependencyUnavailable(f"the read model did not answer within {self._longest_s:g} s") from error


def _selected(keys: Sequence[str] | None, *derived: str) -> Selected:
    """Return the selection of a record's fields, all if None, and of derived keys."""
    if keys is not None:
        return [*MANDATORY, *keys, *derived]
    return models.PayloadSelectorExclude(exclude=[HISTORY]) if derived else RECORD


def _ways(payload: Mapping[str, object], terms: Iterable[Term], names: frozenset[str]) -> tuple[str, ...]:
    """Return how an image matched a word search: the ways of the keys that contain one of the terms."""
    labelled = not names.isdisjoint(cast("list[str]", payload.get(LABEL_KEYS) or []))
    required = list(terms)
    return tuple(
        searchable.way
        for key, searchable in SEARCHABLE.items()
        if (searchable.way == "label" and labelled)
        or any(contains(str(payload.get(WORDS[key]) or ""), term) for term in required)
    )
