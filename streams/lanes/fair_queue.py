"""A queue in which owners take turns: nobody waits for another's backlog, only for one item of each who waits."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class FairQueue(Generic[T]):
    """Items by owner. Of n owners who wait, each gets one of n turns; an owner's own items keep their order."""

    _waiting: OrderedDict[str, deque[T]] = field(default_factory=OrderedDict)  # in the order of their turns
    _count: int = 0

    def __len__(self) -> int:
        """Return how many items wait."""
        return self._count

    @property
    def owners(self) -> int:
        """How many owners wait."""
        return len(self._waiting)

    def put(self, owner: str, item: T) -> None:
        """Add an item behind those of its owner. Who did not wait so far is the last to have a turn."""
        self._waiting.setdefault(owner, deque()).append(item)
        self._count += 1

    def take(self) -> T:
        """Return the next item of the owner whose turn it is. Raises IndexError when nothing waits."""
        if not self._waiting:
            raise IndexError("nothing waits")
        owner, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[owner] = items
        self._count -= 1
        return item

    def __iter__(self) -> Iterator[T]:
        """Walk everything that waits, owner by owner."""
        for items in self._waiting.values():
            yield from items

    def drop(self, unwanted: Callable[[T], bool]) -> None:
        """Forget items; everybody keeps their turn."""
        kept = OrderedDict(
            (owner, left)
            for owner, items in self._waiting.items()
            if (left := deque(item for item in items if not unwanted(item)))
        )
        self._waiting = kept
        self._count = sum(len(items) for items in kept.values())
