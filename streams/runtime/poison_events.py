"""Crash markers: an event that crashes its worker twice is dead-lettered instead of crashing every later worker.

A crash cannot be counted in attempt headers, so a marker file exists while an event is processed. Markers found at the
start name the events in flight when the previous worker crashed: any of them may be the cause, so each is processed
alone. If a worker crashes again while it processes one event alone, that event is dead-lettered.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import structlog

from schemas.events.envelope import Record
from streams.errors import DISK_FULL

SUFFIX = ".at-work"
log = structlog.get_logger(__name__)


class Verdict(Enum):
    """How an event is processed."""

    NORMAL = "normal"
    ISOLATED = "isolated"  # in flight, perhaps with others, when a previous worker crashed
    POISON = "poison"  # processed alone when a worker crashed again


class PoisonEventTracker:
    """Crash markers of one worker slot. An event is poison after `limit` crashes, all but the first while alone."""

    def __init__(self, folder: Path, *, limit: int = 2) -> None:
        self._folder = folder
        self._place = str(folder)
        self._limit = limit
        self._crashes: dict[str, int] = {}
        for path in folder.iterdir():
            if path.suffix == SUFFIX:
                text = path.read_text(errors="replace").strip()
                self._crashes[path.stem] = (int(text) if text.isdigit() else 0) + 1

    def suspects(self) -> int:
        """Return the number of events that were in flight at a previous crash and are not finished since."""
        return len(self._crashes)

    def verdict(self, record: Record) -> Verdict:
        """Return how an event must be processed."""
        crashes = self._crashes.get(_name(record), 0)
        if crashes >= self._limit:
            return Verdict.POISON
        return Verdict.ISOLATED if crashes else Verdict.NORMAL

    def begin(self, record: Record) -> None:
        """Create an event's marker, for a suspect only once it runs alone. On a full disk there is no marker."""
        name = _name(record)
        # Called in the event loop for every event: plain system calls, and an empty file unless it crashed before.
        try:
            file = os.open(f"{self._place}/{name}{SUFFIX}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                if crashes := self._crashes.get(name, 0):
                    os.write(file, str(crashes).encode())
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            # Processing may still succeed; only a crash from here on is not counted.
            log.warning("disk full; crash marker not written", error=str(error))

    def end(self, record: Record) -> None:
        """Remove the marker of a finished event."""
        name = _name(record)
        self._crashes.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._place}/{name}{SUFFIX}")  # noqa: PTH108 - see begin

    def clear(self) -> None:
        """Remove all markers: this process exits for a reason unrelated to its events."""
        for path in self._folder.glob("*" + SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _name(record: Record) -> str:
    return f"{record.topic}_{record.partition}_{record.offset}"


@contextmanager
def poison_event_tracker(folder: Path, agent: str, *, limit: int) -> Iterator[PoisonEventTracker]:
    """Lock the first free slot of an agent on this machine; a crashed worker's slot is free and keeps its markers.

    Raises OSError when the folder is not writable.
    """
    slot = 0
    while True:
        place = folder / agent / str(slot)
        place.mkdir(parents=True, exist_ok=True)
        lock = os.open(place / "lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            slot += 1
            continue
        try:
            yield PoisonEventTracker(place, limit=limit)
        finally:
            os.close(lock)
        return
