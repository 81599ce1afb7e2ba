"""What is broken when: made from a seed, the same seed gives the same schedule. Pure."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

POINTS = ("before-work", "after-object", "after-produce", "before-commit")
COMPUTING = ("sanitizer", "resizer", "ocr", "detector")  # those that store a result, so have a point after it
OTHERS = ("fetcher", "embedder", "core")  # the core is where the indexer works

BROKERS_AWAY_S = 60.0


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault: when it is due (seconds from the start), what, to whom, and for how long it is held."""

    at_s: float
    kind: str
    target: str
    duration_s: float

    def __str__(self) -> str:
        held = f" for {self.duration_s:g} s" if self.duration_s else ""
        return f"{self.at_s:6.0f} s  {self.kind} {self.target}{held}"


def long_schedule(seed: int, minutes: float) -> list[Planned]:
    """Return at least 60 faults with every kind among them, spread evenly over the time in an order of the seed's."""
    return _spread(list(_all()), seed, minutes)


def short_schedule(seed: int, minutes: float) -> list[Planned]:
    """Return the dozen faults of the short form, in an order of the seed's."""
    return _spread(list(_few()), seed, minutes)


def only(schedule: list[Planned], kinds: Sequence[str], minutes: float) -> list[Planned]:
    """Return the faults of these kinds in the same order, spread over the time."""
    return _evenly([(fault.kind, fault.target, fault.duration_s) for fault in schedule if fault.kind in kinds], minutes)


def _all() -> Iterator[tuple[str, str, float]]:
    yield from _deaths()
    yield from _broker_faults()
    yield from _event_faults()
    for kind, seconds in (("away", 12), ("killed", 4), ("slow", 15), ("errors", 15), ("resets", 12), ("full", 12)):
        yield f"store-{kind}", "minio", seconds
    for kind in ("away", "slow", "errors"):
        yield f"read-model-{kind}", "core", 10
    for kind in ("decoder-segfault", "decoder-segfault", "decoder-killed", "memory-bomb", "endless-decode"):
        yield kind, "sanitizer", 0
    for spacing in ("slow", "quick", "at once"):
        yield "delete-races", spacing, 0
    yield "twins", "both gateways", 0
    yield "twins", "both gateways", 0


def _deaths() -> Iterator[tuple[str, str, float]]:
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
    yield "brokers-away", "brokers", BROKERS_AWAY_S
    yield "produce-fails", "brokers", 15
    for name in ("sanitizer", "resizer"):
        yield "rebalance-storm", name, 20
    yield "dead-letters-away", "sanitizer", 8


def _event_faults() -> Iterator[tuple[str, str, float]]:
    for topic in ("image.uploaded", "image.sanitized", "image.facts"):
        yield "duplicate-flood", topic, 0
    for topic in ("image.sanitized", "image.facts"):
        yield "reordered-truncated", topic, 0
    for topic in ("image.uploaded", "image.facts"):
        yield "transaction-holes", topic, 0
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
    yield "dead-letters-away", "sanitizer", 3
    yield "store-errors", "minio", 8
    yield "decoder-segfault", "sanitizer", 0
    yield "delete-races", "quick", 0
    yield "twins", "both gateways", 0


def _spread(faults: list[tuple[str, str, float]], seed: int, minutes: float) -> list[Planned]:
    random.Random(seed).shuffle(faults)
    return _evenly(faults, minutes)


def _evenly(faults: list[tuple[str, str, float]], minutes: float) -> list[Planned]:
    # Who is held longer has the longer slot; what is left of the time is shared equally.
    pause_s = max(1.0, (minutes * 60 - sum(held for _, _, held in faults)) / (len(faults) + 1))
    planned, at_s = [], pause_s / 2
    for kind, target, held in faults:
        planned.append(Planned(round(at_s, 1), kind, target, held))
        at_s += held + pause_s
    return planned
