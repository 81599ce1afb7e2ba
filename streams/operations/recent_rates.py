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

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition

from streams.errors import DependencyUnavailable
from streams.settings import KafkaSettings
from streams.topics import BULK, FETCH_REQUESTED, LANE_TARGET_HEADER, OUTCOMES, UPLOADED, Topic

WINDOW_S = 900.0
MINUTES = (1, 5, 15)
ACCEPTED = "accepted"
BUCKET_S = 10
MAX_RECORDS = 100_000  # of one look; the next one goes on
LOOK_S = 20.0  # one look takes so long at most
_ANSWER_S = 10.0
_BUFFER_KB = 4_000
_ENTRANCES: tuple[Topic, ...] = (UPLOADED, FETCH_REQUESTED)
_ACCEPTS = frozenset(kind.type for topic in _ENTRANCES for kind in topic.events)
_TOPICS = (*_ENTRANCES, BULK, OUTCOMES)
_OURS, _DOOR = "darkroom/", "darkroom/gateway"  # ce_source: what else is ours says again what was said before

Place = tuple[str, int]  # topic and partition


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
    consumer = Consumer(
        {
            "bootstrap.servers": kafka.bootstrap,
            "group.id": kafka.group("reader"),
            "enable.auto.commit": False,
            "enable.partition.eof": False,
            "queued.max.messages.kbytes": _BUFFER_KB,
        }
    )
    try:
        spans = _spans(consumer, kafka, since)
        consumer.assign([TopicPartition(*place, begin) for place, (begin, end) in spans.items() if begin < end])
        return _read(consumer, kafka, spans)
    except KafkaException as error:
        raise DependencyUnavailable(f"cannot read the log: {error}") from error
    finally:
        consumer.close()


def _spans(consumer: Consumer, kafka: KafkaSettings, since: dict[Place, int]) -> dict[Place, tuple[int, int]]:
    """Return, of each partition, the offsets to read: from, and up to."""
    places: list[Place] = []
    for topic in _TOPICS:
        name = kafka.topic(topic.name)
        known = consumer.list_topics(name, timeout=_ANSWER_S).topics.get(name)
        places += [(name, number) for number in (known.partitions if known is not None else ())]
    begin_ms = int((time.time() - WINDOW_S) * 1000)
    at = consumer.offsets_for_times([TopicPartition(*place, begin_ms) for place in places], timeout=_ANSWER_S)
    spans: dict[Place, tuple[int, int]] = {}
    for asked in at:
        place = (asked.topic, asked.partition)
        low, high = consumer.get_watermark_offsets(TopicPartition(*place), timeout=_ANSWER_S)
        earliest = asked.offset if asked.offset >= 0 else high
        spans[place] = (min(max(low, earliest, since.get(place, 0)), high), high)
    return spans


def _read(
    consumer: Consumer, kafka: KafkaSettings, spans: dict[Place, tuple[int, int]]
) -> tuple[list[Happened], dict[Place, int], bool]:
    found: list[Happened] = []
    reached = {place: begin for place, (begin, _) in spans.items()}
    left = {place for place, (begin, end) in spans.items() if begin < end}
    until, taken = time.monotonic() + LOOK_S, 0
    while left and taken < MAX_RECORDS and time.monotonic() < until:
        message = consumer.poll(1.0)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        place = (str(message.topic()), int(message.partition() or 0))
        reached[place] = int(message.offset() or 0) + 1
        taken += 1
        found.extend(_happened(message, kafka.logical(place[0])))
        if reached[place] >= spans[place][1]:
            left.discard(place)
    return found, reached, bool(left)


def _happened(message: Message, topic: str) -> Iterator[Happened]:
    """Return what a record says, if it is one of an image accepted or ended."""
    headers = {name: value.decode("utf-8", "replace") for name, value in message.headers() or () if value}
    kind, source = headers.get("ce_type", ""), headers.get("ce_source", "")
    ended = topic == OUTCOMES.name
    if not ended and (kind not in _ACCEPTS or (source.startswith(_OURS) and source != _DOOR)):
        return
    if not ended and topic != BULK.name and LANE_TARGET_HEADER in headers:
        return  # it was counted when it came into the bulk lane
    try:
        body = json.loads(message.value() or b"")
        job = f"{body['image_id']}.{body.get('generation', 1)}"
        at = message.timestamp()[1] / 1000
        yield Happened(at, str(body.get("owner", "")), kind.split(".")[2] if ended else ACCEPTED, job)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return  # not an event of ours: its reader says so in a dead letter
