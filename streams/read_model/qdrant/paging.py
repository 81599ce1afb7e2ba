"""Pages of images ordered by id, which starts with the time.

Qdrant scrolls by id in ascending order only, and can order by an indexed number: newest first uses the id's
milliseconds, and images of the same millisecond are sorted here.
"""

from __future__ import annotations

from collections.abc import Iterator

from qdrant_client import models

from streams.read_model.qdrant.conditions import between
from streams.read_model.qdrant.documents import SEQUENCE, sequence
from streams.read_model.qdrant.points import Points, Selected, StoredPoint

_SCROLL = 1000  # images of one millisecond read at once


def oldest(
    points: Points, where: models.Filter, *, after: str | None, limit: int, payload: Selected
) -> list[StoredPoint]:
    """Return a page, oldest first, starting after the id `after`."""
    # A scroll includes the id at which it begins.
    found, _ = points.scroll(where, limit=limit + 1, offset=after, payload=payload)
    return [point for point in found if point.id != after][:limit]


def newest(
    points: Points, where: models.Filter, *, before: str | None, limit: int, payload: Selected
) -> list[StoredPoint]:
    """Return a page, newest first, starting before the id `before`."""
    found: set[str] = set()
    order = models.OrderBy(key=SEQUENCE, direction=models.Direction.DESC)
    if before is not None:
        found = {image_id for image_id in _at(points, where, sequence(before)) if image_id < before}
        # Not a further filter: with one, the engine would collect and sort all that is left, page after page.
        order = models.OrderBy(key=SEQUENCE, direction=models.Direction.DESC, start_from=sequence(before) - 1)
    if len(found) < limit:
        page, _ = points.scroll(where, limit=limit + 1, order_by=order, payload=False)
        found |= {point.id for point in page}
        if len(page) > limit:  # more may exist of the last millisecond, in undefined order
            found |= set(_at(points, where, sequence(page[-1].id)))
    wanted = sorted(found, reverse=True)[:limit]
    read = {point.id: point for point in points.retrieve(wanted, payload)} if wanted else {}
    return [read[image_id] for image_id in wanted if image_id in read]


def _at(points: Points, where: models.Filter, milliseconds: int) -> Iterator[str]:
    then = between(where, models.Range(gte=milliseconds, lte=milliseconds))
    offset: str | None = None
    while True:
        found, offset = points.scroll(then, limit=_SCROLL, offset=offset, payload=False)
        yield from (point.id for point in found)
        if offset is None:
            return
