"""Dead-letter limit: stops an agent whose model is broken before its whole topic is dead-lettered.

As in Sentry's arroyo (`DlqLimit`): stop if too many of the last events, or too many in a row, were dead-lettered.

All files of one owner may fail in an agent that works. One owner therefore counts for less than half of a limit, so
that fewer than three owners never reach it; a dead letter whose owner is unreadable counts as an owner of its own.
Where the dead letters of fewer owners would reach a limit, the agent's own test input decides (`Stage.probe`).
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass

from streams.settings import LimitSettings

LEAST_OWNERS = 3  # owners whose dead letters stop an agent without a test of its own input


@dataclass(frozen=True, slots=True)
class Reached:
    """A limit that was reached, and whether by several owners: if not, the agent may work and its input be bad."""

    reason: str
    by_several: bool


class DeadLetterLimit:
    """Counts dead-lettered events. Rejected images do not count: they are outcomes, not failures."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._events: deque[tuple[bool, str | None]] = deque()
        self._window = _DeadLetters(math.floor(settings.share * settings.window) + 1)
        self._row = _DeadLetters(settings.in_a_row)
        self._unproven = 0  # dead letters since the start, or since the agent last proved that it works

    def note(self, *, died: bool, owner: str | None = None) -> Reached | None:
        """Record one event and its owner; return the limit it reached, None below the limits. Constant time."""
        self._events.append((died, owner))
        if died:
            self._window.add(owner)
            self._row.add(owner)
            self._unproven += 1
        elif self._row.total:
            self._row = _DeadLetters(self._settings.in_a_row)
        if len(self._events) > self._settings.window:
            was_dead, whose = self._events.popleft()
            if was_dead:
                self._window.remove(whose)
        if self._row.total < self._row.limit and self._window.total < self._window.limit:
            return None
        return self._reached(by_several=True) or self._reached(by_several=False)

    def works(self) -> None:
        """Record that the agent works: only as many dead letters again reach a limit for fewer than three owners."""
        self._unproven = 0

    def _reached(self, *, by_several: bool) -> Reached | None:
        if self._exceeds(self._row, by_several=by_several):
            return Reached(f"{self._row.total} events in a row went to the dead letters", by_several)
        if self._exceeds(self._window, by_several=by_several):
            dead, events = self._window.total, len(self._events)
            return Reached(f"{dead} of the last {events} events went to the dead letters", by_several)
        return None

    def _exceeds(self, found: _DeadLetters, *, by_several: bool) -> bool:
        if by_several:
            return found.bounded >= max(found.limit, LEAST_OWNERS)
        return min(found.total, self._unproven) >= found.limit


class _DeadLetters:
    """The number of dead letters, and the same number with a bounded share of each owner, as running sums."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.total = 0
        self.bounded = 0
        self._share = max(1, (limit - 1) // 2)  # two owners together stay below the limit
        self._by_owner: Counter[str] = Counter()

    def add(self, owner: str | None) -> None:
        self.total += 1
        if owner is not None:
            self._by_owner[owner] += 1
        if owner is None or self._by_owner[owner] <= self._share:
            self.bounded += 1

    def remove(self, owner: str | None) -> None:
        self.total -= 1
        if owner is None or self._by_owner[owner] <= self._share:
            self.bounded -= 1
        if owner is not None:
            self._by_owner[owner] -= 1
            if not self._by_owner[owner]:
                del self._by_owner[owner]
