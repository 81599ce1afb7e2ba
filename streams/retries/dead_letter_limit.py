"""The dead-letter limit: a broken model must not drain a topic into the dead letters.

After sentry's arroyo (`DlqLimit`): when too many of the last events died, or too many in a row, stop consuming.
"""

from __future__ import annotations

from collections import deque

from streams.settings import LimitSettings


class DeadLetterLimit:
    """Counts how events end. Refused images do not count: they are outcomes, not failures."""

    def __init__(self, settings: LimitSettings) -> None:
        self._settings = settings
        self._window: deque[bool] = deque(maxlen=settings.window)
        self._row = 0

    def note(self, *, died: bool) -> str | None:
        """Note how one event ended; return why consuming must stop, None as long as it need not."""
        self._window.append(died)
        self._row = self._row + 1 if died else 0
        dead = sum(self._window)
        if self._row >= self._settings.in_a_row:
            return f"{self._row} events in a row went to the dead letters"
        if dead > self._settings.share * self._settings.window:
            return f"{dead} of the last {len(self._window)} events went to the dead letters"
        return None
