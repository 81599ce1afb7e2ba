"""Live feed: delivers progress events of images to subscribers. Pure; `streams.live.log_follower` reads the log.

One ring holds what happened lately; each listener has a bounded queue of its own. Whoever resumes is given what the
ring holds since their position, then what comes. All of that is one step of the event loop, so nothing falls between.

A fact that is said again (same ce_id) within the ring's length is told once. Of an image whose deletion was seen, only
the deletion itself is told from then on.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from schemas.events.envelope import Record
from streams.live.cursors import Positions, cursor_of, latest
from streams.live.progress_events import ProgressEvent, progress_event_of
from streams.telemetry import metrics

DELETED_REMEMBERED = 20_000  # images


class Lost(Exception):
    """The log does not hold this position any more, or never did."""


class TooSlow(Exception):
    """The listener did not take what it was told fast enough."""


class Crowded(Exception):
    """There are as many listeners as there may be."""


@dataclass(frozen=True)
class Delivery:
    """A happening, where it stands in the log, and how far the log was read with it."""

    what: ProgressEvent
    spot: int  # of its partition, in the positions
    offset: int
    after: Positions
    shape: tuple[int, ...]

    @cached_property
    def cursor(self) -> str:
        """What a listener says to go on behind this."""
        return cursor_of(self.shape, self.after)


class Listener:
    """One who listens, to an image or to all of an owner. Close it."""

    def __init__(self, feed: Feed, owner: str, image_id: str | None, *, room: int) -> None:
        self.owner = owner
        self.image_id = image_id
        self._feed = feed
        self._room = room
        self._since: Positions | None = None  # what came before is known to the listener
        self._waiting: deque[Delivery] = deque()  # first what the ring held, which is bounded by itself; then what came
        self._held = 0
        self._too_slow = False
        self._lost = False
        self._closed = False
        self._stirred = asyncio.Event()

    def concerns(self, told: Delivery) -> bool:
        """Say whether this is the listener's, and new to it."""
        return self.wants(told.what) and (self._since is None or told.offset >= self._since[told.spot])

    def wants(self, what: ProgressEvent) -> bool:
        """Say whether something that happened is the listener's."""
        return what.owner == self.owner and self.image_id in (None, what.image_id)

    def begin(self, held: Iterable[Delivery], since: Positions, known: Collection[str] = ()) -> None:
        """Begin behind a position, with what the ring holds since then and was not told already."""
        self._since = since
        self._waiting.extend(told for told in held if self.concerns(told) and told.what.id not in known)
        self._held = len(self._waiting)
        self._stirred.set()

    def publish(self, told: Delivery) -> None:
        """Queue what happened, if it is this listener's and there is room."""
        if self._too_slow or self._lost or not self.concerns(told):
            return
        if len(self._waiting) >= self._room + self._held:
            self._too_slow = True
        else:
            self._waiting.append(told)
        self._stirred.set()

    def lose(self) -> None:
        """Say that some of what happened is lost to this listener."""
        self._lost = True
        self._stirred.set()

    def wake(self) -> None:
        """Look again, at once."""
        self._stirred.set()

    async def next(self, wait_s: float) -> Delivery | None:
        """Return what happened next; None if nothing did for so long, or nothing will. Raises TooSlow and Lost."""
        if not self._waiting and not self._ended():
            self._stirred.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._stirred.wait()
            except TimeoutError:
                return None
        if self._waiting:
            self._held = max(0, self._held - 1)
            return self._placed(self._waiting.popleft())
        if self._too_slow:
            metrics.LIVE_CUT.inc()
            raise TooSlow
        if self._lost:
            raise Lost
        return None

    def cursor(self) -> str | None:
        """Return the cursor of this very moment; None while something waits to be told."""
        if self._waiting or self._ended():
            return None
        now = self._feed.positions
        return cursor_of(self._feed.shape, now if self._since is None else latest(self._since, now))

    def close(self) -> None:
        """Listen no more."""
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            self._feed.leave(self)

    def _ended(self) -> bool:
        return self._too_slow or self._lost or self._feed.hung_up

    def _placed(self, told: Delivery) -> Delivery:
        """Return a happening with a cursor that is behind none the listener was given before.

        Readers meet the partitions in different orders: what this reader read early, the listener may know already.
        """
        if self._since is None:
            return told
        after = latest(self._since, told.after)
        if after == told.after:
            self._since = None  # from here on this reader is ahead of where the listener began
            return told
        self._since = after
        return Delivery(told.what, told.spot, told.offset, after, told.shape)


class Feed:
    """What is told, and to whom."""

    def __init__(self, *, remembered: int, room: int, most: int, most_of_owner: int) -> None:
        self.positions: Positions = ()
        self.shape: tuple[int, ...] = ()
        self.hung_up = False
        self._room = room
        self._most, self._most_of_owner = most, most_of_owner
        self._ring: deque[Delivery] = deque()
        self.remembered = remembered
        self._floor: list[int] = []  # per partition: from here on the ring holds everything
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._deleted: OrderedDict[str, int] = OrderedDict()
        self._by_owner: dict[str, set[Listener]] = defaultdict(set)
        self._by_image: dict[str, set[Listener]] = defaultdict(set)
        self._count: Counter[str] = Counter()  # by owner

    @property
    def listeners(self) -> int:
        """How many listen."""
        return self._count.total()

    def has_room(self, owner: str) -> bool:
        """Say whether one more of this owner may listen."""
        return self.listeners < self._most and self._count[owner] < self._most_of_owner

    @property
    def floor(self) -> Positions:
        """From where on the ring holds everything."""
        return tuple(self._floor)

    def begin(self, shape: Sequence[int], positions: Positions) -> None:
        """Begin, or begin anew, at a position: what was told before is forgotten, and who listens has lost some."""
        self.shape, self.positions = tuple(shape), positions
        self._floor = list(positions)
        self._ring.clear()
        self._ids.clear()
        for listener in self._everybody():
            listener.lose()

    def take(self, spot: int, record: Record) -> None:
        """Tell what a record says, and note how far the log was read. Records of a partition come in order."""
        if record.offset < self.positions[spot]:
            return
        self.positions = (*self.positions[:spot], record.offset + 1, *self.positions[spot + 1 :])
        what = progress_event_of(record)
        if what is None or not self.tellable(what):
            return
        if what.id in self._ids:
            return
        self._ids[what.id] = None
        while len(self._ids) > self.remembered:
            self._ids.popitem(last=False)
        if what.deletes:
            self._deleted[what.image_id] = what.generation
            while len(self._deleted) > DELETED_REMEMBERED:
                self._deleted.popitem(last=False)
        self._tell(Delivery(what, spot, record.offset, self.positions, self.shape))

    def tellable(self, what: ProgressEvent) -> bool:
        """Say whether something may be told: nothing of an image whose deletion was seen, but the deletion."""
        return what.deletes or what.generation >= self._deleted.get(what.image_id, 0)

    def holds(self, since: Positions, spots: Collection[int]) -> bool:
        """Say whether the ring holds all that happened since a position, in these partitions."""
        return all(since[spot] >= self._floor[spot] for spot in spots)

    def listener(self, owner: str, image_id: str | None = None) -> Listener:
        """Return a listener that is told nothing until it joins. Raises Crowded."""
        if not self.has_room(owner):
            raise Crowded
        self._count[owner] += 1
        metrics.LIVE_LISTENERS.set(self.listeners)
        return Listener(self, owner, image_id, room=self._room)

    def join(self, listener: Listener, since: Positions, known: Collection[str] = ()) -> None:
        """Let somebody listen from a position on that the ring holds; `known` are ids they have been told already."""
        listener.begin((told for told in self._ring if self.tellable(told.what)), since, known)
        self._of(listener).add(listener)

    def leave(self, listener: Listener) -> None:
        """Tell somebody nothing any more."""
        self._of(listener).discard(listener)
        for index, key in ((self._by_owner, listener.owner), (self._by_image, listener.image_id)):
            if key is not None and not index.get(key, True):
                del index[key]
        self._count[listener.owner] -= 1
        self._count += Counter()  # who has none left is forgotten
        metrics.LIVE_LISTENERS.set(self.listeners)

    def close(self) -> None:
        """End: who listens is told what is queued, and nothing more."""
        self.hung_up = True
        for listener in self._everybody():
            listener.wake()

    def _tell(self, told: Delivery) -> None:
        self._ring.append(told)
        while len(self._ring) > self.remembered:
            oldest = self._ring.popleft()
            self._floor[oldest.spot] = oldest.offset + 1
        for index, key in ((self._by_owner, told.what.owner), (self._by_image, told.what.image_id)):
            for listener in index.get(key, ()):
                listener.publish(told)

    def _of(self, listener: Listener) -> set[Listener]:
        if listener.image_id is not None:
            return self._by_image[listener.image_id]
        return self._by_owner[listener.owner]

    def _everybody(self) -> Iterator[Listener]:
        for index in (self._by_owner, self._by_image):
            for listeners in index.values():
                yield from listeners
