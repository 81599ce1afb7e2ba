"""Lanes: who sends many images in a short time has them wait in the bulk lane, and is told so."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.values import Lane, Owner

MINUTE_S = 60.0
OWNERS = 10_000  # kept in mind; beyond it those are forgotten who sent nothing within the minute


@dataclass(slots=True)
class Lanes:
    """How many interactive images each owner sent within the last minute, as this process has seen."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _sent: dict[Owner, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def choose(self, asked: Lane, owner: Owner) -> Lane:
        """Return the lane an image goes to: the one asked for, unless its owner has had their interactive ones."""
        if asked is Lane.BULK:
            return asked
        now = self.clock()
        if len(self._sent) > OWNERS:
            self._sent = defaultdict(deque, {who: at for who, at in self._sent.items() if at[-1] > now - MINUTE_S})
        sent = self._sent[owner]
        while sent and sent[0] <= now - MINUTE_S:
            sent.popleft()
        if len(sent) >= self.per_minute:
            return Lane.BULK
        sent.append(now)
        return Lane.INTERACTIVE
