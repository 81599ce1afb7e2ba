"""Crash markers: an event that crashes its worker twice is dead-lettered instead of crashing every later worker.

A crash cannot be counted in attempt headers, so a marker exists outside the process while an event is processed.
Markers found at the start name the events in flight when the previous worker crashed: any of them may be the cause, so
each is processed alone. If a worker crashes again while it processes one event alone, that event is dead-lettered.

The markers of a worker are the slots of one open file: setting or clearing one is a single small write, since it
happens in the event loop for every event. A slot never crosses a page, so a killed process leaves none half written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path

import structlog

from schemas.events.envelope import Record
from streams.errors import DISK_FULL

TABLE = "in-flight"
SUFFIX = ".at-work"  # of the files that earlier versions wrote, one per event
_SLOT = 512  # bytes: more than topic, partition and offset take, and a divisor of the page size
_FREE = b"\0"
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
        self._limit = limit
        self._table = os.open(folder / TABLE, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        self._slots: dict[str, int] = {}  # offsets in the file, by event
        self._free: list[int] = []
        self._end = 0
        self._crashes: dict[str, int] = {}
        self._read_files()
        self._read_table()

    def _read_table(self) -> None:
        table = os.pread(self._table, os.fstat(self._table).st_size, 0)
        self._end = -(-len(table) // _SLOT) * _SLOT
        for slot in range(0, len(table), _SLOT):
            text = table[slot : slot + _SLOT].partition(_FREE)[0].decode(errors="replace")
            if not text:
                self._free.append(slot)
                continue
            name, _, crashes = text.partition("\n")
            self._slots[name] = slot
            self._crashes[name] = max(self._crashes.get(name, 0), _count(crashes) + 1)

    def _read_files(self) -> None:
        self._files = {path.stem: path for path in self._folder.glob("*" + SUFFIX)}
        for name, path in self._files.items():
            self._crashes[name] = _count(path.read_text(errors="replace")) + 1

    def suspects(self) -> int:
        """Return the number of events that were in flight at a previous crash and are not finished since."""
        return len(self._crashes)

    def verdict(self, record: Record) -> Verdict:
        """Return how an event must be processed."""
        if not self._crashes:
            return Verdict.NORMAL
        crashes = self._crashes.get(_name(record), 0)
        if crashes >= self._limit:
            return Verdict.POISON
        return Verdict.ISOLATED if crashes else Verdict.NORMAL

    def begin(self, record: Record) -> None:
        """Set an event's marker, for a suspect only once it runs alone. On a full disk there is no marker."""
        name = _name(record)
        slot = self._slots.get(name)
        if slot is None:
            slot = self._free.pop() if self._free else self._end
        entry = f"{name}\n{self._crashes.get(name, 0)}\0".encode()
        if self._write(entry, slot):
            self._slots[name] = slot
            self._end = max(self._end, slot + _SLOT)
        elif slot < self._end and name not in self._slots:
            self._free.append(slot)

    def end(self, record: Record) -> None:
        """Clear the marker of a finished event."""
        name = _name(record)
        self._crashes.pop(name, None)
        slot = self._slots.pop(name, None)
        if slot is not None and self._write(_FREE, slot):
            self._free.append(slot)
        if self._files and (path := self._files.pop(name, None)) is not None:
            path.unlink(missing_ok=True)

    def clear(self) -> None:
        """Clear all markers: this process exits for a reason unrelated to its events."""
        os.ftruncate(self._table, 0)
        self._slots.clear()
        self._free.clear()
        self._end = 0
        for path in self._files.values():
            path.unlink(missing_ok=True)

    def close(self) -> None:
        """Close the file. Markers that are set stay."""
        os.close(self._table)

    def _write(self, entry: bytes, slot: int) -> bool:
        """Write a slot; return whether it was written, which a full disk may prevent."""
        try:
            if os.pwrite(self._table, entry, slot) == len(entry):
                return True
            os.pwrite(self._table, _FREE, slot)
            error = "partly written"
        except OSError as failure:
            if failure.errno not in DISK_FULL:
                raise
            error = str(failure)
        # Processing may still succeed; only a crash from here on is not counted.
        log.warning("disk full; crash marker not written", error=error)
        return False


def _count(text: str) -> int:
    return int(text) if text.strip().isdigit() else 0


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
            tracker = PoisonEventTracker(place, limit=limit)
            try:
                yield tracker
            finally:
                tracker.close()
        finally:
            os.close(lock)
        return
