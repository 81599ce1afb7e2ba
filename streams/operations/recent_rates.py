"""Rates: images accepted and ended recently, counted from the log.

Every gateway therefore reports the same numbers. Each look reads only the records since the previous one; counts are
kept per owner in buckets of 10 s for 15 minutes.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from schemas.events.envelope import Record
from streams.kafka.bounded_read import open_reader
from streams.settings import KafkaSettings
from streams.topics import BULK, FETCH_REQUESTED, LANE_TARGET_HEADER, OUTCOMES, UPLOADED, Topic

WINDOW_S = 900.0
MINUTES = (1, 5, 15)
ACCEPTED = "accepted"
BUCKET_S = 10
MAX_RECORDS = 100_000  # of one look; the next one continues
LOOK_S = 20.0  # longest duration of one look
_BUFFER_BYTES = 4_000_000
_ENTRANCES: tuple[Topic, ...] = (UPLOADED, FETCH_REQUESTED)
_ACCEPTS = frozenset(kind.type for topic in _ENTRANCES for kind in topic.events)
_TOPICS = (*_ENTRANCES, BULK, OUTCOMES)
_DARKROOM, _GATEWAY = "darkroom/", "darkroom/gateway"  # ce_source: our other producers repeat accepted uploads

Place = tuple[str, int]  # logical topic and partition


@dataclass(frozen=True, slots=True)
class RateEvent:
    """One image was accepted, or one of its generations ended."""

    at: float  # unix seconds
    owner: str
    what: str  # ACCEPTED, or the state the image ended in
    job: str


class Tally:
    """Counts recent events by owner. Pure."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str, str]] = Counter()  # bucket, owner, what
        self._seen: dict[tuple[str, str], int] = {}  # job and what -> bucket; repeats count once

    def add(self, event: RateEvent) -> None:
        """Count an event; repeats are ignored."""
        bucket, key = int(event.at // BUCKET_S), (event.job, event.what)
        if key not in self._seen:
            self._seen[key] = bucket
            self._counts[bucket, event.owner, event.what] += 1

    def counts(self, now: float, owner: str | None = None) -> dict[str, dict[int, int]]:
        """Return counts by kind and by window in minutes, of one owner or of all."""
        self._forget(now)
        found: dict[str, dict[int, int]] = {}
        for (bucket, by, what), count in self._counts.items():
            if owner not in (None, by):
                continue
            by_minutes = found.setdefault(what, dict.fromkeys(MINUTES, 0))
            for minutes in MINUTES:
                if bucket > (now - 60 * minutes) // BUCKET_S:
                    by_minutes[minutes] += count
        return found

    def _forget(self, now: float) -> None:
        oldest = (now - WINDOW_S) // BUCKET_S
        self._counts = Counter({key: count for key, count in self._counts.items() if key[0] >= oldest})
        self._seen = {key: bucket for key, bucket in self._seen.items() if bucket >= oldest}


@dataclass(slots=True)
class RecentLog:
    """Follows the log and counts recent events. Calls raise DependencyUnavailable."""

    kafka: KafkaSettings
    tally: Tally = field(default_factory=Tally)
    behind: bool = True  # whether the last look left records unread
    looked_at: float = 0.0  # unix seconds
    _next: dict[Place, int] = field(default_factory=dict)  # offsets
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def lately(self, owner: str | None) -> dict[str, dict[int, int]]:
        """Return counts by kind and by window in minutes before the last look, of one owner or of all."""
        return self.tally.counts(self.looked_at, owner)

    async def look(self) -> None:
        """Count the records since the last look."""
        async with self._looking:
            found, self._next, self.behind = await asyncio.to_thread(read_recent, self.kafka, self._next)
            for event in found:
                self.tally.add(event)
            self.looked_at = time.time()


def read_recent(kafka: KafkaSettings, since: dict[Place, int]) -> tuple[list[RateEvent], dict[Place, int], bool]:
    """Return the events from these offsets on and within the window, the next offsets, and whether records are left.

    Blocks. Raises DependencyUnavailable.
    """
    with open_reader(kafka, buffer_bytes=_BUFFER_BYTES) as reader:
        spans = [span for topic in _TOPICS for span in reader.spans(topic.name)]
        begin_ms = int((time.time() - WINDOW_S) * 1000)
        for span, earliest in zip(spans, reader.offsets_at(spans, begin_ms), strict=True):
            begin = max(span.next, earliest, since.get((span.topic, span.partition), 0))
            span.next = min(begin, span.end)
        records = islice(reader.read(spans, limit_s=LOOK_S), MAX_RECORDS)
        found = [event for record in records for event in _rate_events(record)]
    reached = {(span.topic, span.partition): span.next for span in spans}
    return found, reached, not all(span.complete for span in spans)


def _rate_events(record: Record) -> Iterator[RateEvent]:
    """Yield the rate event of a record, if an image was accepted or ended."""
    kind, source = record.header("ce_type") or "", record.header("ce_source") or ""
    ended = record.topic == OUTCOMES.name
    if not ended and (kind not in _ACCEPTS or (source.startswith(_DARKROOM) and source != _GATEWAY)):
        return
    if not ended and record.topic != BULK.name and record.header(LANE_TARGET_HEADER) is not None:
        return  # counted when it entered the bulk lane
    try:
        body = json.loads(record.value or b"")
        job = f"{body['image_id']}.{body.get('generation', 1)}"
        at = record.timestamp_ms / 1000
        yield RateEvent(at, str(body.get("owner", "")), kind.split(".")[2] if ended else ACCEPTED, job)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return  # not an event; its consumer dead-letters it
