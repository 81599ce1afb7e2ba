"""Live feed: delivers progress events of images to subscribers. Pure; `streams.live.log_follower` reads the log.

One ring buffer contains the recent events; each listener has a bounded queue. A resuming listener receives the ring's
events since its position, then new ones. Joining is one step of the event loop, so that no event is missed.

A repeated event (same ce_id) within the ring's length is delivered once. After the deletion of an image, only the
deletion itself is delivered.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from operator import gt

from schemas.events.envelope import Record
from streams.live.cursors import Positions, cursor_of, latest
from streams.live.progress_events import ProgressEvent, progress_event_of
from streams.telemetry import metrics

DELETED_REMEMBERED = 20_000  # images


class Lost(Exception):
    """The log does not contain this position: its records expired, or it never existed."""


class TooSlow(Exception):
    """The listener's queue is full."""


class TooManyListeners(Exception):
    """The limit on listeners is reached."""


class Displaced(Exception):
    """The listener's place went to an owner with fewer listeners."""


@dataclass(frozen=True)
class Delivery:
    """A progress event, its place in the log, and the positions after it."""

    what: ProgressEvent
    spot: int  # index of its partition in the positions
    offset: int
    after: Positions
    shape: tuple[int, ...]

    @cached_property
    def cursor(self) -> str:
        """The cursor that resumes after this event."""
        return cursor_of(self.shape, self.after)


class Listener:
    """Receives the events of one image, or of all images of an owner. Must be closed."""

    def __init__(self, feed: Feed, owner: str, image_id: str | None, *, room: int) -> None:
        self.owner = owner
        self.image_id = image_id
        self._feed = feed
        self._room = room
        self._since: Positions | None = None  # earlier events are known to the listener
        self._waiting: deque[Delivery] = deque()  # events of the ring first, then new ones
        self._from_ring = 0
        self._too_slow = False
        self._lost = False
        self.closed = False
        self._displaced = False
        self._changed = asyncio.Event()

    def concerns(self, delivery: Delivery) -> bool:
        """Return whether a delivery is for this listener and new to it."""
        return self.wants(delivery.what) and (self._since is None or delivery.offset >= self._since[delivery.spot])

    def wants(self, what: ProgressEvent) -> bool:
        """Return whether an event is for this listener."""
        return what.owner == self.owner and self.image_id in (None, what.image_id)

    def begin(self, ring: Iterable[Delivery], since: Positions, known: Collection[str] = ()) -> None:
        """Start at a position, with the ring's events since then except the known ones."""
        self._since = since
        self._waiting.extend(one for one in ring if self.concerns(one) and one.what.id not in known)
        self._from_ring = len(self._waiting)
        self._changed.set()

    def publish(self, delivery: Delivery) -> None:
        """Queue a delivery for this listener; a full queue ends it with TooSlow."""
        if self._too_slow or self._lost or not self.concerns(delivery):
            return
        if len(self._waiting) >= self._room + self._from_ring:
            self._too_slow = True
        else:
            self._waiting.append(delivery)
        self._changed.set()

    def lose(self) -> None:
        """End the listener with Lost: it missed events."""
        self._lost = True
        self._changed.set()

    def displace(self) -> None:
        """End the listener with Displaced, and leave the feed."""
        self._displaced = True
        self.close()
        self._changed.set()

    def check(self) -> None:
        """Raise Displaced once the listener has lost its place."""
        if self._displaced:
            raise Displaced

    def wake(self) -> None:
        """Wake a pending `next`."""
        self._changed.set()

    async def next(self, wait_s: float) -> Delivery | None:
        """Return the next delivery; None after `wait_s`, or if the feed is closed. Raises TooSlow, Lost, Displaced."""
        if not self._waiting and not self._ended():
            self._changed.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            except TimeoutError:
                return None
        self.check()
        if self._waiting:
            self._from_ring = max(0, self._from_ring - 1)
            return self._placed(self._waiting.popleft())
        if self._too_slow:
            metrics.LIVE_CUT.inc()
            raise TooSlow
        if self._lost:
            raise Lost
        return None

    def cursor(self) -> str | None:
        """Return the current cursor; None while deliveries are queued."""
        if self._waiting or self._ended():
            return None
        now = self._feed.positions
        return cursor_of(self._feed.shape, now if self._since is None else latest(self._since, now))

    def close(self) -> None:
        """Leave the feed."""
        if not self.closed:
            self.closed = True
            self._waiting.clear()
            self._feed.leave(self)

    def _ended(self) -> bool:
        return self._too_slow or self._lost or self._displaced or self._feed.closed

    def _placed(self, delivery: Delivery) -> Delivery:
        """Return the delivery with a cursor that never goes back behind an earlier one of this listener.

        Readers read partitions in different orders: the listener may already know records this reader reads later.
        """
        if self._since is None:
            return delivery
        after = latest(self._since, delivery.after)
        if after == delivery.after:
            self._since = None  # this reader has passed the listener's start
            return delivery
        self._since = after
        return Delivery(delivery.what, delivery.spot, delivery.offset, after, delivery.shape)


class Feed:
    """Ring buffer of recent events, and the listeners of one process."""

    def __init__(self, *, remembered: int, room: int, most: int, most_of_owner: int) -> None:
        self.positions: Positions = ()
        self.shape: tuple[int, ...] = ()
        self.closed = False
        self._room = room
        self._most, self._most_of_owner = most, most_of_owner
        self._ring: deque[Delivery] = deque()
        self.remembered = remembered
        self._floor: list[int] = []  # per partition: the ring contains every event from here on
        self._ids: OrderedDict[str, None] = OrderedDict()
        self._deleted: OrderedDict[str, int] = OrderedDict()
        self._by_owner: dict[str, set[Listener]] = defaultdict(set)
        self._by_image: dict[str, set[Listener]] = defaultdict(set)
        self._open: dict[str, dict[Listener, None]] = {}  # by owner, the oldest first
        self.listeners = 0

    def has_room(self, owner: str) -> bool:
        """Return whether the owner may add a listener.

        While places are free, up to the limit per owner; then only in place of a listener of the owner with the most,
        if that one keeps at least as many. So no owner has more than an equal share once the places are contended.
        """
        if self._of_owner(owner) >= self._most_of_owner:
            return False
        return self.listeners < self._most or self._of_owner(self._largest()) > self._of_owner(owner) + 1

    @property
    def floor(self) -> Positions:
        """The positions from which on the ring contains every event."""
        return tuple(self._floor)

    def begin(self, shape: Sequence[int], positions: Positions) -> None:
        """Start, or restart, at a position: clears the ring, and ends all listeners with Lost."""
        self.shape, self.positions = tuple(shape), positions
        self._floor = list(positions)
        self._ring.clear()
        self._ids.clear()
        for listener in self._all():
            listener.lose()

    def take(self, spot: int, record: Record) -> None:
        """Publish a record's event and advance the position. Records of a partition arrive in order."""
        if record.offset < self.positions[spot]:
            return
        self.positions = (*self.positions[:spot], record.offset + 1, *self.positions[spot + 1 :])
        what = progress_event_of(record)
        if what is None or not self.visible(what):
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
        self._publish(Delivery(what, spot, record.offset, self.positions, self.shape))

    def visible(self, what: ProgressEvent) -> bool:
        """Return whether an event may be delivered: after a deletion, only the deletion itself."""
        return what.deletes or what.generation >= self._deleted.get(what.image_id, 0)

    def covers(self, since: Positions, spots: Collection[int]) -> bool:
        """Return whether the ring contains every event since a position, in these partitions."""
        return all(since[spot] >= self._floor[spot] for spot in spots)

    def listener(self, owner: str, image_id: str | None = None) -> Listener:
        """Return a listener that receives nothing until it joins. Raises TooManyListeners."""
        if not self.has_room(owner):
            raise TooManyListeners
        if self.listeners >= self._most:
            next(iter(self._open[self._largest()])).displace()
        listener = Listener(self, owner, image_id, room=self._room)
        self._open.setdefault(owner, {})[listener] = None
        self.listeners += 1
        metrics.LIVE_LISTENERS.set(self.listeners)
        return listener

    def join(self, listener: Listener, since: Positions, known: Collection[str] = ()) -> None:
        """Start a listener at a position the ring covers; `known` are ids it has received already."""
        if listener.closed:
            return
        listener.begin((one for one in self._later_than(since) if self.visible(one.what)), since, known)
        self._of(listener).add(listener)

    def _later_than(self, since: Positions) -> list[Delivery]:
        """Return the end of the ring that begins with the first delivery behind a position.

        It is found by bisection, since the positions of the ring's deliveries only grow.
        """
        first = bisect_left(self._ring, True, key=lambda one: any(map(gt, one.after, since)))
        return list(islice(reversed(self._ring), len(self._ring) - first))[::-1]

    def leave(self, listener: Listener) -> None:
        """Remove a listener."""
        self._of(listener).discard(listener)
        for index, key in ((self._by_owner, listener.owner), (self._by_image, listener.image_id)):
            if key is not None and not index.get(key, True):
                del index[key]
        del self._open[listener.owner][listener]
        if not self._open[listener.owner]:
            del self._open[listener.owner]
        self.listeners -= 1
        metrics.LIVE_LISTENERS.set(self.listeners)

    def close(self) -> None:
        """Close the feed: listeners receive their queued deliveries, then None."""
        self.closed = True
        for listener in self._all():
            listener.wake()

    def _of_owner(self, owner: str) -> int:
        return len(self._open.get(owner, ()))

    def _largest(self) -> str:
        """Return the owner with the most listeners."""
        return max(self._open, key=self._of_owner, default="")

    def _publish(self, delivery: Delivery) -> None:
        self._ring.append(delivery)
        while len(self._ring) > self.remembered:
            oldest = self._ring.popleft()
            self._floor[oldest.spot] = oldest.offset + 1
        for index, key in ((self._by_owner, delivery.what.owner), (self._by_image, delivery.what.image_id)):
            for listener in index.get(key, ()):
                listener.publish(delivery)

    def _of(self, listener: Listener) -> set[Listener]:
        if listener.image_id is not None:
            return self._by_image[listener.image_id]
        return self._by_owner[listener.owner]

    def _all(self) -> Iterator[Listener]:
        for index in (self._by_owner, self._by_image):
            for listeners in index.values():
                yield from listeners
