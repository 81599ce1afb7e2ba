"""Admission control: how many bulk images may enter the pipeline. Pure; the clock is an argument.

Agents have no lanes and process their topics in order. Interactive latency stays low because bulk images wait in front
of the pipeline, so that only few are ahead of an interactive image.

- Interactive images in the pipeline: nothing is admitted.
- One arrived recently: at most `beside_interactive` images; none around the expected arrival of the next, so that
  regular arrivals find the pipeline empty.
- Otherwise as many as keep the pipeline busy, by Little's law: in flight = rate x (latency of an image alone +
  `target_delay_s`), so that a new image waits about `target_delay_s`.
- None in flight and none admitted for `starve_s`: one image, even if an interactive one is expected; after twice that,
  even if one is in the pipeline.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from streams.settings import LaneSettings

WHOLE = ""  # instead of a stage: the slot ends with the image's outcome
FIRST_WINDOW = 2.0
MIN_WINDOW = 2.0  # a single image leaves most of the pipeline idle
SMOOTHING = 0.3  # weight of a new measurement in a running mean
UNQUEUED = 1.25  # latency relative to an image alone, below which nothing queues
MAX_CHANGE = 2.0  # factor of one window adjustment, which limits the effect of an outlier
EXPIRY = 10  # times the usual latency: the image is in a delay topic, or was dropped without an outcome
REMEMBERED = 10_000  # interactive images, and ended ones


@dataclass(frozen=True, slots=True)
class Slot:
    """One bulk image in the pipeline; freed by the fact of `stage`, or by the outcome (WHOLE)."""

    image_id: str
    stage: str = WHOLE


@dataclass(frozen=True, slots=True)
class _Flight:
    admitted_at: float
    alone: bool


class Admission:
    """Admission control of one scheduler."""

    def __init__(self, settings: LaneSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._flights: OrderedDict[Slot, _Flight] = OrderedDict()
        self._interactive: OrderedDict[str, float] = OrderedDict()  # image id -> arrival
        self._ended: OrderedDict[str, float] = OrderedDict()  # an outcome may be read before its upload
        self._interactive_at = -float("inf")  # the last arrival or outcome of one
        self._arrived_at = -float("inf")
        self._gap_s: float | None = None  # mean time between interactive images
        self._admitted_at = clock()
        self._window = FIRST_WINDOW
        self._base_s: float | None = None
        self._was_full = False
        self._probing = False  # the next image is admitted alone, to measure its latency
        self._latencies: list[float] = []

    @property
    def in_flight(self) -> int:
        """Number of bulk images in the pipeline."""
        return len(self._flights)

    @property
    def interactive(self) -> int:
        """Number of interactive images in the pipeline."""
        return len(self._interactive)

    @property
    def window(self) -> int:
        """Maximum number of bulk images in the pipeline."""
        if self._among_interactive(self._clock()):
            return min(self._settings.beside_interactive, int(self._window))
        return 1 if self._probing else int(self._window)

    def room(self) -> int:
        """Return how many images may be admitted now."""
        now = self._clock()
        self._expire(now)
        starve_s = self._settings.starve_s * (2 if self._interactive else 1)
        starved = not self._flights and now - self._admitted_at >= starve_s
        blocked = bool(self._interactive) or self._expecting(now)
        return max(int(starved), 0 if blocked else self.window - len(self._flights))

    def admit(self, slot: Slot) -> None:
        """Record that an image enters the pipeline. Callers admit at most `room()` images."""
        self._flights.pop(slot, None)
        now = self._admitted_at = self._clock()
        alone = not self._flights
        self._flights[slot] = _Flight(now, alone)
        self._probing = self._probing and not alone
        self._was_full = self._was_full or len(self._flights) >= int(self._window)

    def free(self, slot: Slot) -> None:
        """Record that an image left the pipeline."""
        flight = self._flights.pop(slot, None)
        if flight is not None:
            self._learn(self._clock() - flight.admitted_at, flight)

    def interactive_seen(self, image_id: str) -> None:
        """Record that an interactive image entered the pipeline."""
        if image_id in self._ended:
            return
        now = self._clock()
        if self._among_interactive(now):
            gap = now - self._arrived_at
            self._gap_s = gap if self._gap_s is None else self._gap_s + SMOOTHING * (gap - self._gap_s)
        else:
            self._gap_s = None
        self._arrived_at = self._interactive_at = self._interactive[image_id] = now
        while len(self._interactive) > REMEMBERED:
            self._interactive.popitem(last=False)

    def outcome(self, image_id: str) -> None:
        """Record the outcome of a bulk or interactive image."""
        self.free(Slot(image_id))
        now = self._ended[image_id] = self._clock()
        if self._interactive.pop(image_id, None) is not None:
            self._interactive_at = now
        while len(self._ended) > REMEMBERED:
            self._ended.popitem(last=False)

    def _among_interactive(self, now: float) -> bool:
        return now - self._interactive_at < self._settings.quiet_s

    def _expecting(self, now: float) -> bool:
        """Return whether an image admitted now would still be in flight at the next expected interactive arrival."""
        if self._gap_s is None or self._base_s is None or not self._among_interactive(now):
            return False
        return abs(now - (self._arrived_at + self._gap_s)) < self._base_s

    def _expire(self, now: float) -> None:
        """Drop images in flight for too long: in a delay topic, or never to end."""
        max_s = self._settings.slot_s
        usual_s = (self._base_s or max_s) + self._settings.target_delay_s
        while self._flights and next(iter(self._flights.values())).admitted_at <= now - min(max_s, EXPIRY * usual_s):
            self._flights.popitem(last=False)
        for seen in (self._interactive, self._ended):
            while seen and next(iter(seen.values())) <= now - max_s:
                seen.popitem(last=False)

    def _learn(self, took_s: float, flight: _Flight) -> None:
        """Adjust the window after each windowful of images, if the window was the limit."""
        if flight.admitted_at <= self._interactive_at:
            return  # it shared the pipeline with interactive images
        if flight.alone:
            base = self._base_s if self._base_s is not None else took_s
            self._base_s = base + SMOOTHING * (took_s - base)
        self._latencies.append(took_s)
        if len(self._latencies) < self._window:
            return
        mean_s = max(sum(self._latencies) / len(self._latencies), 1e-6)
        was_full, self._was_full = self._was_full, False
        self._latencies.clear()
        if was_full:
            # Rate = window / mean latency, so the new window = rate x wanted latency = window x wanted / mean.
            base_s = self._base_s if self._base_s is not None else mean_s
            wanted_s = base_s + self._settings.target_delay_s
            change = MAX_CHANGE if mean_s <= UNQUEUED * base_s else wanted_s / mean_s
            change = min(max(change, 1 / MAX_CHANGE), MAX_CHANGE)
            self._window = min(max(self._window * change, MIN_WINDOW), self._settings.max_in_flight)
            # At the minimum no image is alone any more, so a slower pipeline would be mistaken for a busy one.
            self._probing = self._window <= MIN_WINDOW
