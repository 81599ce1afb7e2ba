"""Lookups of credentials that no cached API key matches: bounded, and remembered for a second when they fail.

An unknown id and a wrong secret of a known id take the same path, so that the response does not disclose which ids
exist. Of all lookups in a process `places` run at once, whatever callers send; the others use the cached table, which
is read again for all of them together.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PLACES = 8  # lookups in progress at once, of one process
REFUSED_S = 1.0  # how long a refusal is remembered: the longest time a key created meanwhile is refused
REMEMBERED = 10_000  # refusals; beyond it the oldest is dropped


class UnknownKeys:
    """Admission of lookups, and the credentials refused in the last second."""

    def __init__(self, *, places: int = PLACES, clock: Callable[[], float] = time.monotonic) -> None:
        self._free = places
        self._clock = clock
        self._refused: OrderedDict[tuple[str, str], float] = OrderedDict()

    def was_refused(self, key_id: str, digest: str) -> bool:
        """Return whether these credentials were refused less than REFUSED_S ago."""
        at = self._refused.get((key_id, digest))
        return at is not None and self._clock() - at < REFUSED_S

    def refuse(self, key_id: str, digest: str) -> None:
        """Remember that the store has no such key."""
        self._refused.pop((key_id, digest), None)
        self._refused[key_id, digest] = self._clock()
        if len(self._refused) > REMEMBERED:
            self._refused.popitem(last=False)

    @contextmanager
    def place(self) -> Iterator[bool]:
        """Yield whether the lookup has a place; it is free again after the block."""
        admitted = self._free > 0
        self._free -= admitted
        try:
            yield admitted
        finally:
            self._free += admitted
