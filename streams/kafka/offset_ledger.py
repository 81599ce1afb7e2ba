"""Offset ledger: work finishes in any order, offsets are acked in order.

Faust commits past running work if acks arrive out of order (faust-streaming issues 606, 315, 527), so it receives only
the contiguous finished prefix. Entries are kept per partition and generation of the assignment; those of an older
generation are ignored, because the partition may already be assigned to another worker.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

A = TypeVar("A")  # the handle that acks one message


@dataclass(frozen=True, slots=True)
class Slice:
    """One assignment of a partition to this worker."""

    topic: str
    partition: int
    generation: int


class LedgerBroken(Exception):
    """The ledger was used in a way that could lose an event; the process must exit."""


@dataclass(slots=True)
class _Entry(Generic[A]):
    handle: A
    finished: bool = False


@dataclass(slots=True)
class Ledger(Generic[A]):
    """Tracks which offsets were taken and finished, and which can therefore be acked."""

    _open: dict[Slice, OrderedDict[int, _Entry[A]]] = field(default_factory=dict)
    _newest: dict[tuple[str, int], int] = field(default_factory=dict)
    _acked: dict[Slice, int] = field(default_factory=dict)  # the highest offset returned by finish()

    def take(self, where: Slice, offset: int, handle: A) -> bool:
        """Record the start of work on an offset. False: already taken, or of an older generation; skip it.

        Raises LedgerBroken if a higher offset was taken before: the log must deliver in order.
        """
        place = (where.topic, where.partition)
        newest = self._newest.get(place, where.generation)
        if where.generation < newest:
            return False
        if where.generation > newest or place not in self._newest:
            self._newest[place] = where.generation
            for old in [s for s in self._open if (s.topic, s.partition) == place and s != where]:
                del self._open[old]
                self._acked.pop(old, None)
        entries = self._open.setdefault(where, OrderedDict())
        if offset in entries or offset <= self._acked.get(where, -1):
            return False
        if entries and offset < next(reversed(entries)):
            raise LedgerBroken(f"{where}: offset {offset} was delivered after {next(reversed(entries))}")
        entries[offset] = _Entry(handle)
        return True

    def finish(self, where: Slice, offset: int) -> list[A]:
        """Mark an offset finished; return the handles that can now be acked, in offset order.

        Returns none for an older generation or a revoked partition.
        """
        entries = self._open.get(where)
        if entries is None or offset not in entries:
            return []
        entries[offset].finished = True
        ready: list[A] = []
        while entries and next(iter(entries.values())).finished:
            self._acked[where], entry = entries.popitem(last=False)
            ready.append(entry.handle)
        return ready

    def revoke(self, topic: str, partition: int) -> None:
        """Drop a revoked partition."""
        for where in [s for s in self._open if (s.topic, s.partition) == (topic, partition)]:
            del self._open[where]
            self._acked.pop(where, None)

    def unfinished(self) -> int:
        """Return the number of taken offsets that are not finished."""
        return sum(not entry.finished for entries in self._open.values() for entry in entries.values())
