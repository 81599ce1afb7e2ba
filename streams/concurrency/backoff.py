"""Pauses between attempts at something that failed: doubled after each, up to a limit."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(slots=True)
class Backoff:
    """When the next attempt is due, by the failures so far. Due at once before the first failure."""

    first_s: float
    most_s: float
    clock: Callable[[], float] = time.monotonic
    _failures: int = 0
    _due_at: float = float("-inf")

    def failed(self) -> float:
        """Count a failure; return the seconds until the next attempt is due."""
        pause_s = min(self.most_s, self.first_s * 2.0 ** min(self._failures, 64))
        self._failures += 1
        self._due_at = self.clock() + pause_s
        return pause_s

    def is_due(self) -> bool:
        """Return whether the pause after the last failure is over."""
        return self.clock() >= self._due_at
