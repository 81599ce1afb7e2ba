"""The offset ledger: work may finish in any order, offsets are acked only in theirs.

Faust commits past running work when acks come out of order (notes: faust-streaming issues 606, 315, 527), so it is
only ever shown the contiguous finished prefix. One ledger per partition and generation of the assignment; marks of
an older generation are void, because the partition may already belong to another worker.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

A = TypeVar("A")  # what the log needs to ack one message


@dataclass(frozen=True, slots=True)
class Slice:
    """One partition as it was assigned to this worker once."""

    topic: str
    partition: int
    generation: int


class LedgerBroken(Exception):
    """The ledger was used in a way that could lose an event: the process must exit."""


@dataclass(slots=True)
class _Entry(Generic[A]):
    handle: A
    finished: bool = False


@dataclass(slots=True)
class Ledger(Generic[A]):
    """Which offsets were taken, which are finished, and which may therefore be acked."""

    _open: dict[Slice, OrderedDict[int, _Entry[A]]] = field(default_factory=dict)
    _newest: dict[tuple[str, int], int] = field(default_factory=dict)
    _acked: dict[Slice, int] = field(default_factory=dict)  # the highest offset handed out to be acked

    def take(self, where: Slice, offset: int, handle: A) -> bool:
        """Note that work on an offset begins. False: already taken, or of an older generation; do not work on it.

        Raises LedgerBroken when an offset comes before one already taken: the log must deliver in order.
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
            raise LedgerBroken(f"{where}: offset {offset} came after {next(reversed(entries))}")
        entries[offset] = _Entry(handle)
        return True

    def finish(self, where: Slice, offset: int) -> list[A]:
        """Mark an offset finished; return the handles that may now be acked, in offset order.

        A mark of an older generation, or of a partition that was revoked, returns nothing.
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
        """Forget a partition: it belongs to somebody else now."""
        for where in [s for s in self._open if (s.topic, s.partition) == (topic, partition)]:
            del self._open[where]
            self._acked.pop(where, None)

    def unfinished(self) -> int:
        """Return how many taken offsets are not finished."""
        return sum(not entry.finished for entries in self._open.values() for entry in entries.values())
