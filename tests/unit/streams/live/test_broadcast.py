"""The feed: who is told what, in which order, and what a position means."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events.facts import DeletionRequested
from schemas.events.outcomes import ImageDeleted
from schemas.http.live import LiveEvent
from schemas.values import new_image_id
from streams.live.broadcast import Crowded, Listener, Lost, TooSlow
from streams.live.cursors import BadCursor, Positions, cursor_of, read_cursor
from streams.live.log_follower import LiveSettings
from tests.support.facts import Facts
from tests.support.server_sent_events import MemoryFeed

SHAPES = st.lists(st.integers(1, 8), min_size=1, max_size=3).flatmap(
    lambda shape: st.tuples(st.just(tuple(shape)), st.tuples(*[st.integers(0, 2**63 - 1) for _ in range(sum(shape))]))
)


def listen(
    feed: MemoryFeed, owner: str = "anna", image_id: str | None = None, since: Positions | None = None
) -> Listener:
    listener = feed.feed.listener(owner, image_id)
    feed.feed.join(listener, feed.feed.positions if since is None else since)
    return listener


async def received(listener: Listener) -> list[str]:
    """Return the stages and outcomes a listener has been told."""
    found = []
    while (told := await listener.next(0.01)) is not None:
        found.append(getattr(told.what.data, "stage", told.what.name.value))
    return found


@settings(deadline=None)
@given(SHAPES)
def test_a_cursor_says_its_position(given: tuple[tuple[int, ...], Positions]) -> None:
    """Whatever the offsets are, a cursor gives them back, and is safe in a header and a URL."""
    shape, positions = given
    cursor = cursor_of(shape, positions)
    assert read_cursor(cursor) == (shape, positions)
    assert all(letter.isalnum() or letter in "-_" for letter in cursor)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """No text does anything but be a cursor or be refused."""
    try:
        shape, positions = read_cursor(text)
    except BadCursor:
        return
    assert sum(shape) == len(positions)


async def test_listeners_are_told_only_what_is_theirs() -> None:
    """An owner hears all their images, a job's listener one image, and nobody another owner's, whatever its id."""
    feed, mine, other, foreign = MemoryFeed(), new_image_id(), new_image_id(), new_image_id()
    all_mine, one, thief = listen(feed), listen(feed, image_id=mine), listen(feed, "ben", image_id=mine)
    feed.append(Facts(mine).resized())
    feed.append(Facts(other).text(), 1)
    feed.append(Facts(foreign, owner="ben").detected("cat"))
    assert await received(all_mine) == ["resizer", "ocr"]
    assert await received(one) == ["resizer"]
    assert await received(thief) == []


async def test_what_is_said_again_is_told_once() -> None:
    """A fact that comes again, as after a crash of the stage, is not told a second time."""
    feed, facts = MemoryFeed(), Facts(new_image_id())
    listener = listen(feed)
    feed.append(facts.resized())
    feed.append(facts.resized())
    feed.append(facts.text())
    assert await received(listener) == ["resizer", "ocr"]


async def test_after_a_deletion_only_the_deletion_is_told() -> None:
    """Late facts of a deleted image are told to nobody, and what was told before is not told to who resumes."""
    feed, image_id = MemoryFeed(), new_image_id()
    start, facts, listener = feed.feed.positions, Facts(image_id), listen(feed)
    feed.append(facts.resized())
    feed.append(DeletionRequested(image_id=image_id, owner="anna", generation=2))
    feed.append(facts.text())
    feed.append(ImageDeleted(image_id=image_id, owner="anna", generation=2))
    assert await received(listener) == ["resizer", "deleting", "deleted"]
    assert await received(listen(feed, since=start)) == ["deleting", "deleted"]


async def test_resuming_is_exact_wherever_it_happens() -> None:
    """From every event's cursor exactly the later events follow, also at a reader that met them in another order."""
    images = [new_image_id() for _ in range(4)]
    events = [(fact, index % 2) for index, image in enumerate(images) for fact in Facts(image).all()]
    here, there = MemoryFeed(), MemoryFeed()
    first = listen(here)
    for event, partition in events:
        here.append(event, partition)
    for event, partition in [pair for pair in events if pair[1]] + [pair for pair in events if not pair[1]]:
        there.append(event, partition)
    told = [await first.next(1) for _ in events]
    for at, last in enumerate(told):
        assert last is not None
        ids = {one.what.id for one in told[: at + 1] if one is not None}
        for feed in (here, there):
            resumed = listen(feed, since=read_cursor(last.cursor)[1])
            while (one := await resumed.next(0)) is not None:
                assert one.what.id not in ids
                ids.add(one.what.id)
                again = listen(feed, since=read_cursor(one.cursor)[1])  # and cut a second time, elsewhere
                rest = set()
                while (more := await again.next(0)) is not None:
                    rest.add(more.what.id)
                assert not rest & ids
                again.close()
            assert len(ids) == len(events)
            ids = {one.what.id for one in told[: at + 1] if one is not None}
            resumed.close()


async def test_what_the_ring_forgot_it_does_not_claim_to_hold() -> None:
    """A position is held exactly as long as nothing that came after it was forgotten."""
    feed = MemoryFeed(LiveSettings(remembered=3))
    start = feed.feed.positions
    for _ in range(3):
        feed.append(Facts(new_image_id()).resized())
    assert feed.feed.holds(start, [0])
    feed.append(Facts(new_image_id()).resized())
    assert not feed.feed.holds(start, [0])
    assert feed.feed.holds(start, [1, 2, 3])
    assert feed.feed.holds((1, 0, 0, 0), [0])


async def test_a_slow_listener_is_cut_and_nobody_else() -> None:
    """Who does not take what is told is told what was queued, then cut; another one misses nothing."""
    feed = MemoryFeed(LiveSettings(queue=2))
    slow, quick = listen(feed), listen(feed)
    images = [new_image_id() for _ in range(5)]
    for image_id in images:
        feed.append(Facts(image_id).resized())
        assert await quick.next(1) is not None
    assert [getattr(await slow.next(1), "offset", None) for _ in range(2)] == [0, 1]
    with pytest.raises(TooSlow):
        await slow.next(1)


async def test_what_the_ring_held_does_not_count_as_slowness() -> None:
    """Who resumes from far back is given all of it, however small the queue."""
    feed = MemoryFeed(LiveSettings(queue=2))
    start = feed.feed.positions
    for _ in range(20):
        feed.append(Facts(new_image_id()).resized())
    resumed = listen(feed, since=start)
    feed.append(Facts(new_image_id()).resized())
    assert len(await received(resumed)) == 21


async def test_a_reader_that_begins_anew_says_so() -> None:
    """When the log was lost under the feed, whoever listens learns that something may be missing."""
    feed = MemoryFeed()
    listener = listen(feed)
    feed.feed.begin((2, 2), (7, 7, 7, 7))
    with pytest.raises(Lost):
        await listener.next(1)


async def test_there_are_only_so_many_listeners() -> None:
    """The bounds hold, of all and of each owner, and whoever leaves makes room, once."""
    feed = MemoryFeed(LiveSettings(max_listeners=2, max_of_owner=1))
    listen(feed, "ben")
    with pytest.raises(Crowded):
        feed.feed.listener("ben")
    one = listen(feed)
    with pytest.raises(Crowded):
        feed.feed.listener("anna")
    one.close()
    one.close()
    listen(feed, "carl")
    with pytest.raises(Crowded):
        feed.feed.listener("anna")


async def test_a_failed_stage_says_why() -> None:
    """State, reason and sentence of a stage are told, and nothing of what it found."""
    feed = MemoryFeed()
    listener = listen(feed)
    feed.append(Facts(new_image_id()).failed("ocr"))
    feed.append(Facts(new_image_id()).text("a secret"))
    failed, read = await listener.next(1), await listener.next(1)
    assert failed is not None and read is not None
    assert failed.what.name is LiveEvent.STAGE
    assert failed.what.data.model_dump(mode="json", exclude_none=True) | {"image_id": "", "job_id": ""} == {
        "image_id": "", "job_id": "", "stage": "ocr", "state": "failed", "attempts": 1, "duration_ms": 5,
        "reused": False, "reason": "internal-error", "message": "Internal error.", "at": "2026-01-01T00:00:00.000Z",
    }  # fmt: skip
    assert "secret" not in read.what.data.model_dump_json()
