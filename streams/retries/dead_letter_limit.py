"""Dead-letter limit: stops an agent whose model is broken before its whole topic is dead-lettered.

As in Sentry's arroyo (`DlqLimit`): stop if too many of the last events, or too many in a row, were dead-lettered.
"""

from __future__ import annotations

from collections import deque

from streams.settings import LimitSettings


class DeadLetterLimit:
    """Counts dead-lettered events. Rejected images do not count: they are outcomes, not failures."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._window: deque[bool] = deque(maxlen=settings.window)
        self._in_a_row = 0

    def note(self, *, died: bool) -> str | None:
        """Record one event; return why the agent must stop, None below the limits."""
        self._window.append(died)
        self._in_a_row = self._in_a_row + 1 if died else 0
        dead = sum(self._window)
        if self._in_a_row >= self._settings.in_a_row:
            return f"{self._in_a_row} events in a row went to the dead letters"
        if dead > self._settings.share * self._settings.window:
            return f"{dead} of the last {len(self._window)} events went to the dead letters"
        return None
