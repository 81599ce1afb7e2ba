"""Health: what a process says of itself. The board is written by whoever knows, and read over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum


class Condition(StrEnum):
    """How well one part of a process does."""

    OK = "ok"
    DEGRADED = "degraded"  # works, with less than it should: a model is missing, its stage skips
    UNREADY = "unready"  # must not be given work


@dataclass(frozen=True, slots=True)
class Note:
    """One line of the board."""

    condition: Condition
    detail: str


@dataclass(slots=True)
class HealthBoard:
    """What each part of this process says of itself, by part. Safe to write from any thread."""

    notes: dict[str, Note] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, part: str, condition: Condition, detail: str = "") -> None:
        """Replace what is known of a part."""
        with self._lock:
            self.notes[part] = Note(condition, detail)

    def condition(self) -> Condition:
        """Return the worst condition of all parts."""
        with self._lock:
            found = {note.condition for note in self.notes.values()}
        for worst in (Condition.UNREADY, Condition.DEGRADED):
            if worst in found:
                return worst
        return Condition.OK

    def snapshot(self) -> dict[str, dict[str, str]]:
        """Return the board as plain values."""
        with self._lock:
            return {part: {"state": note.condition.value, "detail": note.detail} for part, note in self.notes.items()}

    def degraded(self, *, without: Collection[str] = ()) -> str | None:
        """Return what the degraded parts say, all `without` these, None when there is none."""
        with self._lock:
            said = [
                note.detail
                for part, note in self.notes.items()
                if note.condition is Condition.DEGRADED and part not in without
            ]
        return "; ".join(said) or None
