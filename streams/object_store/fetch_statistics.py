"""What the fetchers did, counted per process and day in the object store, so that any gateway can say it."""

from __future__ import annotations

import json
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from enum import StrEnum

from streams.object_store.protocol import FileStore, ObjectMissing
from streams.telemetry import metrics

ROOT = "fetch-statistics/"
_MAX_BYTES = 10_000
_BYTES_SAVED, _WORKING, _AT = "bytes_saved", "working", "at"
_WORKING_VALID_S = 60.0  # after which a process that no longer writes is taken for ended


class Answered(StrEnum):
    """How a request for a URL was answered."""

    FETCHED = "fetched"  # by the source
    STORED = "stored"  # by the last answer
    NOT_MODIFIED = "not-modified"  # by the source: the stored copy is still right
    REFUSED = "refused"  # by the source, or by the guard
    REFUSED_BEFORE = "refused-before"  # by the last answer


_WITHOUT_DOWNLOAD = (Answered.STORED, Answered.NOT_MODIFIED)


class FetchStatistics:
    """The counts of this process."""

    def __init__(self) -> None:
        self._token = uuid.uuid4().hex
        self._counts: Counter[str] = Counter()
        self._day = ""
        self._working = 0
        self._saved: dict[str, int] = {}

    def count(self, answered: Answered, size: int = 0) -> None:
        """Count one answer, and the bytes of its image."""
        self._roll_over()
        self._counts[answered.value] += 1
        metrics.FETCHES.labels(answered.value).inc()
        if answered in _WITHOUT_DOWNLOAD:
            self._counts[_BYTES_SAVED] += size
            metrics.FETCH_BYTES.labels("saved").inc(size)
        else:
            metrics.FETCH_BYTES.labels("fetched").inc(size)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Count a request as being processed."""
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    async def save(self, files: FileStore) -> None:
        """Store the counts of the day, if they changed. Raises DependencyUnavailable."""
        self._roll_over()
        found = {**self._counts, _WORKING: self._working}
        if found == self._saved or not self._counts:
            return
        data = json.dumps({**found, _AT: time.time()}).encode()
        await files.put(f"{ROOT}{self._day}/{self._token}.json", data, content_type="application/json")
        self._saved = found

    def _roll_over(self) -> None:
        if self._day != (today := datetime.now(UTC).date().isoformat()):
            self._day, self._counts = today, Counter()


async def totals(files: FileStore, *, now: float) -> Counter[str]:
    """Return the sums over all processes and stored days: `Answered` values, `bytes_saved` and `working`."""
    found: Counter[str] = Counter()
    async for info in files.list(ROOT):
        try:
            counts = json.loads(await files.get(info.key, limit=_MAX_BYTES))
        except (ObjectMissing, ValueError):
            continue
        working = counts.pop(_WORKING, 0)
        found[_WORKING] += working if now - counts.pop(_AT, 0.0) < _WORKING_VALID_S else 0
        found.update(counts)
    return found
