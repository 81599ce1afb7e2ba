"""Listing: an owner's images page by page, ordered by id, which starts with the time.

Qdrant scrolls by id in ascending order only, and can order by an indexed number: newest first uses the id's
milliseconds, and images of the same millisecond are sorted here.
"""

from __future__ import annotations

from collections.abc import Iterator

from qdrant_client import QdrantClient, models

from schemas.values import ImageState
from streams.read_model.qdrant_schema import LABEL_KEYS, SEQUENCE, equals, sequence, text_words
from streams.read_model.records import Filters
from streams.read_model.words import label_key

_SCROLL = 1000  # ids of one millisecond read at once


def page_filter(owner: str | None, wanted: Filters) -> models.Filter:
    """Return the Qdrant filter of a listing. Images deleted or being deleted never match."""
    must: list[models.Condition] = [equals("deleted", False)]
    if owner is not None:
        must.append(equals("owner", owner))
    for key, value in (("bucket", wanted.bucket), ("category", wanted.category)):
        if value is not None:
            must.append(equals(key, value))
    if wanted.state is not None:
        must.append(equals("state", wanted.state.value))
    must.extend(equals("tags", tag) for tag in wanted.tags)
    must.extend(equals(LABEL_KEYS, label_key(label)) for label in wanted.labels)
    if wanted.since is not None or wanted.until is not None:
        between = models.DatetimeRange(gte=wanted.since, lt=wanted.until)
        must.append(models.FieldCondition(key="submitted_at", range=between))
    if words := text_words(wanted.text):
        must.append(models.FieldCondition(key="text", match=models.MatchText(text=" ".join(words))))
    return models.Filter(must=must, must_not=[equals("state", ImageState.DELETED.value)])


def oldest(client: QdrantClient, name: str, filters: models.Filter, after: str | None, limit: int) -> list[str]:
    """Return the ids of a page, oldest first, starting after the id `after`."""
    points, _ = client.scroll(name, filters, limit=limit + 1, offset=after, with_payload=False)
    return [str(point.id) for point in points if str(point.id) != after][:limit]


def newest(client: QdrantClient, name: str, filters: models.Filter, before: str | None, limit: int) -> list[str]:
    """Return the ids of a page, newest first, starting before the id `before`."""
    found: set[str] = set()
    earlier = models.Range()
    if before is not None:
        found = {image_id for image_id in _at(client, name, filters, sequence(before)) if image_id < before}
        earlier = models.Range(lt=sequence(before))
    if len(found) < limit:
        points, _ = client.scroll(
            name,
            _and(filters, earlier),
            limit=limit + 1,
            order_by=models.OrderBy(key=SEQUENCE, direction=models.Direction.DESC),
            with_payload=False,
        )
        ids = [str(point.id) for point in points]
        found.update(ids)
        if len(ids) > limit:  # more may exist of the last millisecond, in undefined order
            found.update(_at(client, name, filters, sequence(ids[-1])))
    return sorted(found, reverse=True)[:limit]


def _at(client: QdrantClient, name: str, filters: models.Filter, milliseconds: int) -> Iterator[str]:
    then = _and(filters, models.Range(gte=milliseconds, lte=milliseconds))
    offset: models.ExtendedPointId | None = None
    while True:
        points, offset = client.scroll(name, then, limit=_SCROLL, offset=offset, with_payload=False)
        yield from (str(point.id) for point in points)
        if offset is None:
            return


def _and(filters: models.Filter, between: models.Range) -> models.Filter:
    if between == models.Range():
        return filters
    assert isinstance(filters.must, list)  # noqa: S101 - as page_filter builds it
    more = models.FieldCondition(key=SEQUENCE, range=between)
    return filters.model_copy(update={"must": [*filters.must, more]})
