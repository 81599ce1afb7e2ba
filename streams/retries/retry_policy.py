"""Retry policy: in place first, then through delay topics, then the dead letters. Time and randomness are arguments."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from schemas.events.envelope import Record
from streams.settings import RetrySettings

ATTEMPT_HEADER = "retry.attempt"  # attempts before this delivery, over all topics
DELAYS_HEADER = "retry.delays"  # delay topics already passed
POSTPONED_HEADER = "retry.postponed"  # times the event waited although nothing had failed
DUE_HEADER = "retry.due-ms"  # unix milliseconds at which the router forwards the event
FIRST_FAILURE_HEADER = "retry.first-failure"  # RFC 3339
ORIGIN_HEADERS = ("retry.origin-topic", "retry.origin-partition", "retry.origin-offset")


def number_header(record: Record, name: str) -> int:
    """Return a header as a small non-negative number; 0 if it is missing or invalid."""
    text = record.header(name) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0


@dataclass(frozen=True, slots=True)
class Delay:
    """The next delay topic."""

    tier: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Decides on retries by the settings."""

    settings: RetrySettings
    chance: Callable[[], float] = random.random

    def pause_in_place(self, tries: int, elapsed_s: float, after_s: float | None) -> float | None:
        """Return the seconds to wait before the next attempt in place, None if it belongs into a delay topic.

        `tries`: attempts so far; `elapsed_s`: since the first; `after_s`: the dependency's Retry-After.
        Exponential back-off with full jitter (AWS Architecture Blog, "Exponential Backoff And Jitter").
        """
        if tries >= self.settings.in_place_tries:
            return None
        pause: float = self.settings.backoff_s * 2.0 ** (tries - 1) * (0.5 + self.chance() / 2)
        if after_s is not None:
            pause = max(pause, after_s)
        if elapsed_s + pause > self.settings.in_place_total_s:
            return None
        return pause

    def next_delay(self, delays_passed: int, after_s: float | None) -> Delay | None:
        """Return the next delay topic after `delays_passed` of them, None after the last.

        Skips tiers shorter than `after_s`, the dependency's Retry-After.
        """
        remaining = list(self.settings.tiers.items())[delays_passed:]
        for tier, seconds in remaining:
            if after_s is None or seconds >= after_s:
                return Delay(tier, seconds)
        return Delay(*remaining[-1]) if remaining else None

    def waiting_tier(self, after_s: float) -> Delay:
        """Return the delay topic for an event that must wait: the longest that ends at most its shortest too late.

        A longer wait takes several passes, each through the topic that fits what is left of it.
        """
        tiers = sorted(self.settings.tiers.items(), key=lambda tier: tier[1])
        shortest = tiers[0][1]
        return Delay(*[tier for tier in tiers if tier[1] <= max(after_s, 0.0) + shortest][-1])
