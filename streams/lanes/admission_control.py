"""Admission: how many bulk images may be in the pipeline now. Pure; the clock is an argument.

Agents have no lanes: what is in their topics is worked on in its order. An interactive image is quick because bulk
images wait in front of the pipeline, not in it, so that only few are ever ahead of it.

- Interactive images are in the pipeline: nothing more is admitted.
- One came lately: `beside_interactive` images at most, for the next will come soon; none about when it is expected, so
  that it finds the pipeline empty if they come at all regularly.
- Otherwise as many as keep the pipeline busy and no more: Little's law. In flight = rate x (time of an image that is
  alone + `target_delay_s`), so that whoever comes waits about `target_delay_s`.
- None is in flight, and none was admitted for `starve_s`: one, whoever is expected; after twice that, whoever is there.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from streams.settings import LaneSettings

WHOLE = ""  # instead of a stage: the image's outcome ends it
FIRST_WINDOW = 2.0
LEAST_WINDOW = 2.0  # one image alone leaves most of a pipeline idle
NEW_WEIGHT = 0.3  # of a new measurement in a running mean
UNHURRIED = 1.25  # times as long as alone, at most: nothing queues yet
MOST_CHANGE = 2.0  # of the window at once, either way: one strange measurement must not open the gates
SLOW = 10  # times what an image usually takes: it is in a delay topic, or was dropped without an outcome
REMEMBERED = 10_000  # interactive images kept in mind, those that ended too


@dataclass(frozen=True, slots=True)
class Slot:
    """One bulk image in the pipeline: it ends with the fact of `stage`, or with the outcome (WHOLE)."""

    image_id: str
    stage: str = WHOLE


@dataclass(frozen=True, slots=True)
class _Flight:
    admitted_at: float
    alone: bool


class Admission:
    """The gate before the pipeline, as one router sees it."""

    def __init__(self, settings: LaneSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._flights: OrderedDict[Slot, _Flight] = OrderedDict()
        self._interactive: OrderedDict[str, float] = OrderedDict()  # image id -> when it was seen
        self._ended: OrderedDict[str, float] = OrderedDict()  # outcomes may be seen before what they are of
        self._interactive_at = -float("inf")  # when one was seen, or its outcome
        self._arrived_at = -float("inf")
        self._gap_s: float | None = None  # between interactive images, while they come
        self._admitted_at = clock()
        self._window = FIRST_WINDOW
        self._base_s: float | None = None
        self._was_full = False
        self._probing = False  # the next image is to be alone
        self._latencies: list[float] = []

    @property
    def in_flight(self) -> int:
        """How many bulk images are in the pipeline."""
        return len(self._flights)

    @property
    def interactive(self) -> int:
        """How many interactive images are in the pipeline."""
        return len(self._interactive)

    @property
    def window(self) -> int:
        """How many bulk images may be in the pipeline at once; while interactive ones are, no new ones join."""
        if self._among_interactive(self._clock()):
            return min(self._settings.beside_interactive, int(self._window))
        return 1 if self._probing else int(self._window)

    def room(self) -> int:
        """Return how many may be admitted now."""
        now = self._clock()
        self._forget(now)
        patience_s = self._settings.starve_s * (2 if self._interactive else 1)
        starved = not self._flights and now - self._admitted_at >= patience_s
        held = bool(self._interactive) or self._expecting(now)
        return max(int(starved), 0 if held else self.window - len(self._flights))

    def admit(self, slot: Slot) -> None:
        """Note that an image enters the pipeline. Whoever admits more than there is room for is in error."""
        self._flights.pop(slot, None)
        now = self._admitted_at = self._clock()
        alone = not self._flights
        self._flights[slot] = _Flight(now, alone)
        self._probing = self._probing and not alone
        self._was_full = self._was_full or len(self._flights) >= int(self._window)

    def free(self, slot: Slot) -> None:
        """Note that an image has left the pipeline."""
        flight = self._flights.pop(slot, None)
        if flight is not None:
            self._learn(self._clock() - flight.admitted_at, flight)

    def interactive_seen(self, image_id: str) -> None:
        """Note that an interactive image is in the pipeline."""
        if image_id in self._ended:
            return
        now = self._clock()
        if self._among_interactive(now):
            gap = now - self._arrived_at
            self._gap_s = gap if self._gap_s is None else self._gap_s + NEW_WEIGHT * (gap - self._gap_s)
        else:
            self._gap_s = None
        self._arrived_at = self._interactive_at = self._interactive[image_id] = now
        while len(self._interactive) > REMEMBERED:
            self._interactive.popitem(last=False)

    def outcome(self, image_id: str) -> None:
        """Note that an image, whoever sent it, has ended."""
        self.free(Slot(image_id))
        now = self._ended[image_id] = self._clock()
        if self._interactive.pop(image_id, None) is not None:
            self._interactive_at = now
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _among_interactive(self, now: float) -> bool:
        return now - self._interactive_at < self._settings.quiet_s

    def _expecting(self, now: float) -> bool:
        """Say whether an image admitted now would still be there when the next interactive one is expected."""
        if self._gap_s is None or self._base_s is None or not self._among_interactive(now):
            return False
        return abs(now - (self._arrived_at + self._gap_s)) < self._base_s

    def _forget(self, now: float) -> None:
        """Forget what has been in flight for too long: it is in a delay topic, or will never end."""
        most_s = self._settings.slot_s
        usual_s = (self._base_s or most_s) + self._settings.target_delay_s
        while self._flights and next(iter(self._flights.values())).admitted_at <= now - min(most_s, SLOW * usual_s):
            self._flights.popitem(last=False)
        for seen in (self._interactive, self._ended):
            while seen and next(iter(seen.values())) <= now - most_s:
                seen.popitem(last=False)

    def _learn(self, took_s: float, flight: _Flight) -> None:
        """Adapt the window once per windowful of images, if it was what held them back."""
        if flight.admitted_at <= self._interactive_at:
            return  # it shared the pipeline with others: says nothing of what bulk does to itself
        if flight.alone:
            base = self._base_s if self._base_s is not None else took_s
            self._base_s = base + NEW_WEIGHT * (took_s - base)
        self._latencies.append(took_s)
        if len(self._latencies) < self._window:
            return
        mean_s = max(sum(self._latencies) / len(self._latencies), 1e-6)
        was_full, self._was_full = self._was_full, False
        self._latencies.clear()
        if was_full:
            # Rate = window / mean, so rate x wanted time is:
            base_s = self._base_s if self._base_s is not None else mean_s
            wanted_s = base_s + self._settings.target_delay_s
            change = MOST_CHANGE if mean_s <= UNHURRIED * base_s else wanted_s / mean_s
            change = min(max(change, 1 / MOST_CHANGE), MOST_CHANGE)
            self._window = min(max(self._window * change, LEAST_WINDOW), self._settings.max_in_flight)
            # Here nobody is ever alone, and a pipeline that has become slower would be taken for a busy one for good.
            self._probing = self._window <= LEAST_WINDOW
