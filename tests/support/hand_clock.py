"""A clock that tests set."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class HandClock:
    """Returns `now`, in seconds."""

    now: float

    def __call__(self) -> float:
        return self.now
