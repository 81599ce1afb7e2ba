"""Crash markers: an event that kills its worker twice becomes a dead letter, instead of killing every worker for ever.

Attempt headers cannot count a crash, so a file does: there while an event is worked on, gone when it is done. What a
worker finds at its start was in flight when the one before it died. The first time, any of them may have done it: each
is then worked on alone. One that was alone at the second death is the one.
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
from streams.errors import NO_ROOM

SUFFIX = ".at-work"
log = structlog.get_logger(__name__)


class Verdict(Enum):
    """How an event may be worked on."""

    FREE = "free"
    ALONE = "alone"  # it was in flight at a death; so were perhaps others
    GUILTY = "guilty"  # it was alone at the last one


class PoisonEventTracker:
    """The markers of one worker's slot. `limit` deaths make an event guilty; all but the first of them were its own."""

    def __init__(self, folder: Path, *, limit: int = 2) -> None:
        self._folder = folder
        self._place = str(folder)
        self._limit = limit
        self._deaths: dict[str, int] = {}
        for path in folder.iterdir():
            if path.suffix == SUFFIX:
                text = path.read_text(errors="replace").strip()
                self._deaths[path.stem] = (int(text) if text.isdigit() else 0) + 1

    def suspects(self) -> int:
        """Return how many events were in flight when a worker before this one died, and are not done since."""
        return len(self._deaths)

    def verdict(self, record: Record) -> Verdict:
        """Say how an event may be worked on."""
        deaths = self._deaths.get(_name(record), 0)
        if deaths >= self._limit:
            return Verdict.GUILTY
        return Verdict.ALONE if deaths else Verdict.FREE

    def begin(self, record: Record) -> None:
        """Mark an event as worked on; a suspect only once it truly is alone. On a full disk it has no mark."""
        name = _name(record)
        # Twice per event and in the event loop: plain calls, and nothing is written of an event without a past.
        try:
            file = os.open(f"{self._place}/{name}{SUFFIX}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            try:
                if deaths := self._deaths.get(name, 0):
                    os.write(file, str(deaths).encode())
            finally:
                os.close(file)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            # Work that needs no room goes on; a death now would be counted once too few.
            log.warning("no room for a crash marker", error=str(error))

    def end(self, record: Record) -> None:
        """Take the mark away: the event is done."""
        name = _name(record)
        self._deaths.pop(name, None)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self._place}/{name}{SUFFIX}")  # noqa: PTH108 - see begin

    def forgive(self) -> None:
        """Take all marks away: this process ends for a reason that no event is to blame for."""
        for path in self._folder.glob("*" + SUFFIX):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def _name(record: Record) -> str:
    return f"{record.topic}_{record.partition}_{record.offset}"


@contextmanager
def poison_event_tracker(folder: Path, agent: str, *, limit: int) -> Iterator[PoisonEventTracker]:
    """Take the first free slot of an agent on this machine; a worker that died left its slot free, markers and all.

    Raises OSError when the folder cannot be written.
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
