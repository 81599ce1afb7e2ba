"""When to try again: in place for a moment, then in delay topics, then not at all. Clock and chance are arguments."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from schemas.events.envelope import Record
from streams.settings import RetrySettings

ATTEMPT_HEADER = "retry.attempt"  # tries made before this delivery, over all topics
DELAYS_HEADER = "retry.delays"  # delay topics already passed
DUE_HEADER = "retry.due-ms"  # unix milliseconds before which the router leaves the event where it is
FIRST_FAILURE_HEADER = "retry.first-failure"  # RFC 3339
ORIGIN_HEADERS = ("retry.origin-topic", "retry.origin-partition", "retry.origin-offset")


def number_header(record: Record, name: str) -> int:
    """Return a header as a small non-negative number; 0 when it is absent or was made up by somebody else."""
    text = record.header(name) or ""
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 6 else 0


@dataclass(frozen=True, slots=True)
class Delay:
    """The delay topic to go to next."""

    tier: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """The settings as decisions."""

    settings: RetrySettings
    chance: Callable[[], float] = random.random

    def pause_in_place(self, tries: int, elapsed_s: float, after_s: float | None) -> float | None:
        """Return the seconds to wait before the next try here, or None when it should happen elsewhere.

        `tries` made so far, `elapsed_s` since the first; `after_s` is what the dependency asked for.
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
        """Return the delay topic to go to after `delays_passed` of them, or None when it is enough.

        A dependency that asked for more time than the next tier gives gets the first tier that is long enough.
        """
        remaining = list(self.settings.tiers.items())[delays_passed:]
        for tier, seconds in remaining:
            if after_s is None or seconds >= after_s:
                return Delay(tier, seconds)
        return Delay(*remaining[-1]) if remaining else None
