"""The schedule of faults, deterministic by seed. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

POINTS = ("before-work", "after-object", "after-produce", "before-commit")
COMPUTING = ("sanitizer", "resizer", "ocr", "detector")  # stages that store a result: they have the point after-object
OTHERS = ("fetcher", "embedder", "core")  # the core runs the indexer

BROKERS_DOWN_S = 60.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault: due time (seconds from the start), kind, target and duration."""

    at_s: float
    kind: str
    target: str
    duration_s: float

    def __str__(self) -> str:
        duration = f" for {self.duration_s:g} s" if self.duration_s else ""
        return f"{self.at_s:6.0f} s  {self.kind} {self.target}{duration}"


def long_schedule(seed: int, minutes: float) -> list[Planned]:
    """Return at least 60 faults of every kind, in seeded order, spread evenly over the time."""
    return _spread(list(_all()), seed, minutes)


def short_schedule(seed: int, minutes: float) -> list[Planned]:
    """Return the faults of the short form, in seeded order."""
    return _spread(list(_few()), seed, minutes)


def only(schedule: list[Planned], kinds: Sequence[str], minutes: float) -> list[Planned]:
    """Return the faults of these kinds in the same order, spread evenly over the time."""
    return _evenly([(fault.kind, fault.target, fault.duration_s) for fault in schedule if fault.kind in kinds], minutes)


def _all() -> Iterator[tuple[str, str, float]]:
    yield from _process_faults()
    yield from _broker_faults()
    yield from _event_faults()
    for kind, seconds in (("down", 12), ("killed", 4), ("slow", 15), ("errors", 15), ("resets", 12), ("full", 12)):
        yield f"store-{kind}", "minio", seconds
    for kind in ("down", "slow", "errors"):
        yield f"read-model-{kind}", "core", 10
    for kind in ("decoder-segfault", "decoder-segfault", "decoder-killed", "memory-bomb", "endless-decode"):
        yield kind, "sanitizer", 0
    for spacing in ("slow", "quick", "at once"):
        yield "delete-races", spacing, 0
    yield "twins", "both gateways", 0
    yield "twins", "both gateways", 0


def _process_faults() -> Iterator[tuple[str, str, float]]:
    for agent in (*COMPUTING, *OTHERS):
        for point in POINTS:
            if point != "after-object" or agent in COMPUTING:
                yield "kill", f"{agent} {point}", 0
    for name in ("ingest", "router"):
        yield "kill", name, 0
    for name in ("sanitizer", "resizer", "detector", "core"):
        yield "terminate", name, 0
    for name in ("sanitizer", "ocr", "core"):
        yield "zombie", name, 10


def _broker_faults() -> Iterator[tuple[str, str, float]]:
    for topic in ("image.uploaded", "image.sanitized", "image.facts"):
        yield "leader-killed", topic, 6
    yield "rolling-restart", "brokers", 0
    yield "brokers-down", "brokers", BROKERS_DOWN_S
    yield "produce-fails", "brokers", 15
    for name in ("sanitizer", "resizer"):
        yield "rebalance-storm", name, 20
    yield "dead-letters-rejected", "sanitizer", 8


def _event_faults() -> Iterator[tuple[str, str, float]]:
    for topic in ("image.uploaded", "image.sanitized", "image.facts"):
        yield "duplicate-flood", topic, 0
    for topic in ("image.sanitized", "image.facts"):
        yield "reordered-truncated", topic, 0
    for topic in ("image.uploaded", "image.facts"):
        yield "transaction-markers", topic, 0
    yield "slow-events", "resizer", 20


def _few() -> Iterator[tuple[str, str, float]]:
    yield "kill", "sanitizer before-work", 0
    yield "kill", "resizer after-object", 0
    yield "kill", "core after-produce", 0
    yield "kill", "resizer before-commit", 0
    yield "zombie", "sanitizer", 8
    yield "leader-killed", "image.uploaded", 4
    yield "rebalance-storm", "resizer", 10
    yield "duplicate-flood", "image.facts", 0
    yield "reordered-truncated", "image.sanitized", 0
    yield "dead-letters-rejected", "sanitizer", 3
    yield "store-errors", "minio", 8
    yield "decoder-segfault", "sanitizer", 0
    yield "delete-races", "quick", 0
    yield "twins", "both gateways", 0


def _spread(faults: list[tuple[str, str, float]], seed: int, minutes: float) -> list[Planned]:
    random.Random(seed).shuffle(faults)
    return _evenly(faults, minutes)


def _evenly(faults: list[tuple[str, str, float]], minutes: float) -> list[Planned]:
    # Each fault gets its duration; the remaining time is divided into equal pauses.
    pause_s = max(1.0, (minutes * 60 - sum(duration_s for _, _, duration_s in faults)) / (len(faults) + 1))
    planned, at_s = [], pause_s / 2
    for kind, target, duration_s in faults:
        planned.append(Planned(round(at_s, 1), kind, target, duration_s))
        at_s += duration_s + pause_s
    return planned
