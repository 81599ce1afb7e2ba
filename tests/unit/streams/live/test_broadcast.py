"""Live feed: deliveries, their order, and resuming from positions."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from schemas.events.facts import DeletionRequested
from schemas.events.outcomes import ImageDeleted
from schemas.http.live import LiveEvent
from schemas.values import new_image_id
from streams.live.broadcast import Displaced, Listener, Lost, TooManyListeners, TooSlow
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
    """Return the stages and outcomes a listener received."""
    found = []
    while (delivery := await listener.next(0.01)) is not None:
        found.append(getattr(delivery.what.data, "stage", delivery.what.name.value))
    return found


@settings(deadline=None)
@given(SHAPES)
def test_a_cursor_encodes_its_position(given: tuple[tuple[int, ...], Positions]) -> None:
    """For any offsets, a cursor decodes to them, and is safe in a header and a URL."""
    shape, positions = given
    cursor = cursor_of(shape, positions)
    assert read_cursor(cursor) == (shape, positions)
    assert all(letter.isalnum() or letter in "-_" for letter in cursor)


@settings(deadline=None)
@given(st.text(max_size=60))
def test_an_invalid_cursor_is_refused(text: str) -> None:
    """Any text is a cursor or raises BadCursor."""
    try:
        shape, positions = read_cursor(text)
    except BadCursor:
        return
    assert sum(shape) == len(positions)


async def test_listeners_receive_only_their_own_events() -> None:
    """An owner receives all own images, a job's listener one image, and none an image of another owner."""
    feed, mine, other, foreign = MemoryFeed(), new_image_id(), new_image_id(), new_image_id()
    all_mine, one, thief = listen(feed), listen(feed, image_id=mine), listen(feed, "ben", image_id=mine)
    feed.append(Facts(mine).resized())
    feed.append(Facts(other).text(), 1)
    feed.append(Facts(foreign, owner="ben").detected("cat"))
    assert await received(all_mine) == ["resizer", "ocr"]
    assert await received(one) == ["resizer"]
    assert await received(thief) == []


async def test_a_repeated_fact_is_delivered_once() -> None:
    """A fact repeated after a crash of the stage is not delivered again."""
    feed, facts = MemoryFeed(), Facts(new_image_id())
    listener = listen(feed)
    feed.append(facts.resized())
    feed.append(facts.resized())
    feed.append(facts.text())
    assert await received(listener) == ["resizer", "ocr"]


async def test_after_a_deletion_only_the_deletion_is_delivered() -> None:
    """Late facts of a deleted image are not delivered, nor are earlier ones to resuming listeners."""
    feed, image_id = MemoryFeed(), new_image_id()
    start, facts, listener = feed.feed.positions, Facts(image_id), listen(feed)
    feed.append(facts.resized())
    feed.append(DeletionRequested(image_id=image_id, owner="anna", generation=2))
    feed.append(facts.text())
    feed.append(ImageDeleted(image_id=image_id, owner="anna", generation=2))
    assert await received(listener) == ["resizer", "deleting", "deleted"]
    assert await received(listen(feed, since=start)) == ["deleting", "deleted"]


async def test_resuming_is_exact_at_every_position() -> None:
    """Every event's cursor resumes with exactly the later events, also at a reader that read them in another order."""
    images = [new_image_id() for _ in range(4)]
    events = [(fact, index % 2) for index, image in enumerate(images) for fact in Facts(image).all()]
    one_feed, other_feed = MemoryFeed(), MemoryFeed()
    first = listen(one_feed)
    for event, partition in events:
        one_feed.append(event, partition)
    for event, partition in [pair for pair in events if pair[1]] + [pair for pair in events if not pair[1]]:
        other_feed.append(event, partition)
    deliveries = [await first.next(1) for _ in events]
    for at, last in enumerate(deliveries):
        assert last is not None
        ids = {one.what.id for one in deliveries[: at + 1] if one is not None}
        for feed in (one_feed, other_feed):
            resumed = listen(feed, since=read_cursor(last.cursor)[1])
            while (one := await resumed.next(0)) is not None:
                assert one.what.id not in ids
                ids.add(one.what.id)
                again = listen(feed, since=read_cursor(one.cursor)[1])  # resumed a second time
                rest = set()
                while (more := await again.next(0)) is not None:
                    rest.add(more.what.id)
                assert not rest & ids
                again.close()
            assert len(ids) == len(events)
            ids = {one.what.id for one in deliveries[: at + 1] if one is not None}
            resumed.close()


async def test_the_ring_covers_only_what_it_contains() -> None:
    """A position is covered until an event after it has left the ring."""
    feed = MemoryFeed(LiveSettings(remembered=3))
    start = feed.feed.positions
    for _ in range(3):
        feed.append(Facts(new_image_id()).resized())
    assert feed.feed.covers(start, [0])
    feed.append(Facts(new_image_id()).resized())
    assert not feed.feed.covers(start, [0])
    assert feed.feed.covers(start, [1, 2, 3])
    assert feed.feed.covers((1, 0, 0, 0), [0])


async def test_only_the_slow_listener_is_cut() -> None:
    """A slow listener receives its queue, then TooSlow; another misses nothing."""
    feed = MemoryFeed(LiveSettings(queue=2))
    slow, quick = listen(feed), listen(feed)
    images = [new_image_id() for _ in range(5)]
    for image_id in images:
        feed.append(Facts(image_id).resized())
        assert await quick.next(1) is not None
    assert [getattr(await slow.next(1), "offset", None) for _ in range(2)] == [0, 1]
    with pytest.raises(TooSlow):
        await slow.next(1)


async def test_events_of_the_ring_do_not_count_against_the_queue() -> None:
    """A listener that resumes far back receives everything, regardless of its queue size."""
    feed = MemoryFeed(LiveSettings(queue=2))
    start = feed.feed.positions
    for _ in range(20):
        feed.append(Facts(new_image_id()).resized())
    resumed = listen(feed, since=start)
    feed.append(Facts(new_image_id()).resized())
    assert len(await received(resumed)) == 21


async def test_a_restarted_feed_ends_its_listeners() -> None:
    """When the feed restarts at another position, its listeners raise Lost."""
    feed = MemoryFeed()
    listener = listen(feed)
    feed.feed.begin((2, 2), (7, 7, 7, 7))
    with pytest.raises(Lost):
        await listener.next(1)


async def test_listeners_are_limited() -> None:
    """The limits apply in total and per owner; closing frees one place, once."""
    feed = MemoryFeed(LiveSettings(max_listeners=2, max_of_owner=1))
    listen(feed, "ben")
    with pytest.raises(TooManyListeners):
        feed.feed.listener("ben")
    one = listen(feed)
    with pytest.raises(TooManyListeners):
        feed.feed.listener("anna")
    one.close()
    one.close()
    listen(feed, "carl")
    with pytest.raises(TooManyListeners):
        feed.feed.listener("anna")


async def test_no_owner_has_more_than_an_equal_share_of_contended_places() -> None:
    """One owner may take all places; when they are taken, owners with fewer listeners get theirs, the oldest first."""
    feed = MemoryFeed(LiveSettings(max_listeners=6, max_of_owner=6))
    mine = [listen(feed, "anna") for _ in range(6)]
    with pytest.raises(TooManyListeners):
        feed.feed.listener("anna")
    others = [listen(feed, owner) for owner in ("ben", "ben", "carl", "carl")]
    assert feed.feed.listeners == 6
    for displaced in mine[:4]:
        with pytest.raises(Displaced):
            await displaced.next(1)
        displaced.close()
    assert feed.feed.listeners == 6
    for owner in ("anna", "ben", "carl"):  # two each
        assert not feed.feed.has_room(owner)
        with pytest.raises(TooManyListeners):
            feed.feed.listener(owner)
    assert feed.feed.has_room("dora")
    feed.append(Facts(new_image_id(), owner="ben").resized())
    assert await others[0].next(1) is not None
    for listener in (*mine, *others):
        listener.close()
    assert feed.feed.listeners == 0
    assert not any(feed.feed._by_owner.values())


async def test_a_listener_that_lost_its_place_does_not_join() -> None:
    """A listener that is displaced before it joins the feed never receives anything, and leaves nothing behind."""
    feed = MemoryFeed(LiveSettings(max_listeners=2, max_of_owner=2))
    late = feed.feed.listener("anna")
    listen(feed, "anna")
    listen(feed, "ben")
    feed.feed.join(late, feed.feed.positions)
    feed.append(Facts(new_image_id(), owner="anna").resized())
    with pytest.raises(Displaced):
        await late.next(1)
    assert len(feed.feed._by_owner["anna"]) == 1


async def test_a_failed_stage_has_its_reason() -> None:
    """The event has state, reason and message of a stage, and none of its results."""
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
