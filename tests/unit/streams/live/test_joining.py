"""Joining the live feed: what a new listener costs."""

from __future__ import annotations

import pytest

from schemas.values import new_image_id
from streams.live.broadcast import Delivery, Listener
from streams.live.log_follower import LiveSettings
from tests.support.facts import Facts
from tests.support.server_sent_events import MemoryFeed


async def test_joining_examines_only_the_events_behind_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    """The place in the ring is found by position: its length is no cost of a new listener."""
    feed, examined = MemoryFeed(LiveSettings(remembered=50)), 0
    positions = []
    for number in range(80):
        feed.append(Facts(new_image_id()).resized(), number % 2)
        positions.append(feed.feed.positions)
    concerns = Listener.concerns

    def counted(listener: Listener, delivery: Delivery) -> bool:
        nonlocal examined
        examined += 1
        return concerns(listener, delivery)

    monkeypatch.setattr(Listener, "concerns", counted)
    for later in (0, 1, 7, 49):
        examined = 0
        listener = feed.feed.listener("anna")
        feed.feed.join(listener, positions[-1 - later])
        received = 0
        while await listener.next(0.01) is not None:
            received += 1
        assert (received, examined) == (later, later)
        listener.close()
