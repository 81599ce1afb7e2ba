"""Fair queue: round-robin over owners, so that no owner waits for another's backlog."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(slots=True)
class FairQueue(Generic[T]):
    """Items by owner. Of n owners with items, each gets every n-th; the items of one owner keep their order."""

    _waiting: OrderedDict[str, deque[T]] = field(default_factory=OrderedDict)  # next owner first
    _count: int = 0

    def __len__(self) -> int:
        """Return the number of items."""
        return self._count

    @property
    def owners(self) -> int:
        """Number of owners with items."""
        return len(self._waiting)

    def put(self, owner: str, item: T) -> None:
        """Append an item to those of its owner. An owner without items is served last."""
        self._waiting.setdefault(owner, deque()).append(item)
        self._count += 1

    def take(self) -> T:
        """Remove and return the next owner's first item. Raises IndexError if the queue is empty."""
        if not self._waiting:
            raise IndexError("the queue is empty")
        owner, items = self._waiting.popitem(last=False)
        item = items.popleft()
        if items:
            self._waiting[owner] = items
        self._count -= 1
        return item

    def __iter__(self) -> Iterator[T]:
        """Iterate over all items, owner by owner."""
        for items in self._waiting.values():
            yield from items

    def drop(self, unwanted: Callable[[T], bool]) -> None:
        """Remove items; owners keep their order."""
        kept = OrderedDict(
            (owner, left)
            for owner, items in self._waiting.items()
            if (left := deque(item for item in items if not unwanted(item)))
        )
        self._waiting = kept
        self._count = sum(len(items) for items in kept.values())
