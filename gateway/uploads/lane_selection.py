"""Lane selection: interactive images of an owner beyond a rate go to the bulk lane; the response contains the lane."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from schemas.values import Lane, Owner

MINUTE_S = 60.0
OWNERS = 10_000  # tracked; beyond it owners without an image in the last minute are dropped


@dataclass(slots=True)
class Lanes:
    """Counts each owner's interactive images of the last minute, in this process."""

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _sent: dict[Owner, deque[float]] = field(default_factory=lambda: defaultdict(deque))

    def choose(self, requested: Lane, owner: Owner) -> Lane:
        """Return the lane of an image: the requested one, or bulk once the owner exceeds `per_minute`."""
        if requested is Lane.BULK:
            return requested
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
