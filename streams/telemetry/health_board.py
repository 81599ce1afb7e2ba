"""Health of a process: its components write their condition to a board, which is served over HTTP."""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import StrEnum


class Condition(StrEnum):
    """Condition of one part of a process."""

    OK = "ok"
    DEGRADED = "degraded"  # works with reduced function: a model is missing, its stage skips
    UNREADY = "unready"  # must not receive work


@dataclass(frozen=True, slots=True)
class Note:
    """Condition of one part, with a detail."""

    condition: Condition
    detail: str


@dataclass(slots=True)
class HealthBoard:
    """Conditions of this process by part. Thread-safe."""

    notes: dict[str, Note] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def say(self, part: str, condition: Condition, detail: str = "") -> None:
        """Set the condition of a part."""
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
        """Return the details of the degraded parts except those in `without`, None if there is none."""
        with self._lock:
            details = [
                note.detail
                for part, note in self.notes.items()
                if note.condition is Condition.DEGRADED and part not in without
            ]
        return "; ".join(details) or None
