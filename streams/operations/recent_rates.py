"""Rates: how many images were accepted and how many ended lately, counted from the log itself.

So the numbers are the same in every process that asks, however many gateways there are. Each look reads only what came
since the last one; what is kept are counts of ten seconds each, by owner, for a quarter of an hour.
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
MAX_RECORDS = 100_000  # of one look; the next one goes on
LOOK_S = 20.0  # one look takes so long at most
_BUFFER_BYTES = 4_000_000
_ENTRANCES: tuple[Topic, ...] = (UPLOADED, FETCH_REQUESTED)
_ACCEPTS = frozenset(kind.type for topic in _ENTRANCES for kind in topic.events)
_TOPICS = (*_ENTRANCES, BULK, OUTCOMES)
_OURS, _DOOR = "darkroom/", "darkroom/gateway"  # ce_source: what else is ours says again what was said before

Place = tuple[str, int]  # logical topic and partition


@dataclass(frozen=True, slots=True)
class Happened:
    """One image was accepted, or one run of it ended."""

    at: float  # unix seconds
    owner: str
    what: str  # ACCEPTED, or the state the image ended in
    job: str


class Tally:
    """Counts what happened lately. Pure."""

    def __init__(self) -> None:
        self._counts: Counter[tuple[int, str, str]] = Counter()  # bucket, owner, what
        self._seen: dict[tuple[str, str], int] = {}  # job and what -> bucket: what is said again happened once

    def add(self, happened: Happened) -> None:
        """Count one, unless it was counted."""
        bucket, key = int(happened.at // BUCKET_S), (happened.job, happened.what)
        if key not in self._seen:
            self._seen[key] = bucket
            self._counts[bucket, happened.owner, happened.what] += 1

    def counts(self, now: float, owner: str | None = None) -> dict[str, dict[int, int]]:
        """Return, by what happened and by minutes, how often it did so lately; of one owner or of everybody."""
        self._forget(now)
        found: dict[str, dict[int, int]] = {}
        for (bucket, whose, what), count in self._counts.items():
            if owner not in (None, whose):
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
    """What happened lately, by the log. Calls raise DependencyUnavailable."""

    kafka: KafkaSettings
    tally: Tally = field(default_factory=Tally)
    behind: bool = True  # whether more had come than one look took
    looked_at: float = 0.0  # unix seconds
    _next: dict[Place, int] = field(default_factory=dict)  # offsets
    _looking: asyncio.Lock = field(default_factory=asyncio.Lock)

    def lately(self, owner: str | None) -> dict[str, dict[int, int]]:
        """Return, by what happened and by the minutes before the last look, how often; of one owner or of everybody."""
        return self.tally.counts(self.looked_at, owner)

    async def look(self) -> None:
        """Count what came since the last look."""
        async with self._looking:
            found, self._next, self.behind = await asyncio.to_thread(read_recent, self.kafka, self._next)
            for happened in found:
                self.tally.add(happened)
            self.looked_at = time.time()


def read_recent(kafka: KafkaSettings, since: dict[Place, int]) -> tuple[list[Happened], dict[Place, int], bool]:
    """Read on from these offsets, but from no further back than the window; return also where to go on, and whether
    there is more. Blocking. Raises DependencyUnavailable.
    """
    with open_reader(kafka, buffer_bytes=_BUFFER_BYTES) as reader:
        spans = [span for topic in _TOPICS for span in reader.spans(topic.name)]
        begin_ms = int((time.time() - WINDOW_S) * 1000)
        for span, earliest in zip(spans, reader.offsets_at(spans, begin_ms), strict=True):
            begin = max(span.next, earliest, since.get((span.topic, span.partition), 0))
            span.next = min(begin, span.end)
        records = islice(reader.read(spans, limit_s=LOOK_S), MAX_RECORDS)
        found = [happened for record in records for happened in _happened(record)]
    reached = {(span.topic, span.partition): span.next for span in spans}
    return found, reached, not all(span.complete for span in spans)


def _happened(record: Record) -> Iterator[Happened]:
    """Return what a record says, if it is one of an image accepted or ended."""
    kind, source = record.header("ce_type") or "", record.header("ce_source") or ""
    ended = record.topic == OUTCOMES.name
    if not ended and (kind not in _ACCEPTS or (source.startswith(_OURS) and source != _DOOR)):
        return
    if not ended and record.topic != BULK.name and record.header(LANE_TARGET_HEADER) is not None:
        return  # it was counted when it came into the bulk lane
    try:
        body = json.loads(record.value or b"")
        job = f"{body['image_id']}.{body.get('generation', 1)}"
        at = record.timestamp_ms / 1000
        yield Happened(at, str(body.get("owner", "")), kind.split(".")[2] if ended else ACCEPTED, job)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return  # not an event of ours: its reader says so in a dead letter
