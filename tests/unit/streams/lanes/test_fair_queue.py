"""Owners take turns."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.lanes.fair_queue import FairQueue

OWNERS = ("a", "b", "c", "d")
BACKLOGS = st.dictionaries(st.sampled_from(OWNERS), st.integers(1, 40), min_size=1)


@given(backlogs=BACKLOGS)
def test_each_owner_who_waits_has_every_nth_turn(backlogs: dict[str, int]) -> None:
    """Of n owners who wait, each gets one of every n turns, however long the others' backlogs are."""
    queue: FairQueue[str] = FairQueue()
    for owner, count in backlogs.items():
        for _ in range(count):
            queue.put(owner, owner)
    left = Counter(backlogs)
    while len(queue):
        assert queue.owners == len(left)
        turns = [queue.take() for _ in range(len(left))]
        assert sorted(turns) == sorted(left)
        left.subtract(turns)
        left = +left
    assert not left


@given(st.lists(st.tuples(st.sampled_from(OWNERS), st.booleans()), max_size=200))
def test_nothing_is_lost_or_repeated_and_an_owner_keeps_its_order(steps: list[tuple[str, bool]]) -> None:
    """Over any puts and takes, every item comes out once, and those of one owner in the order they went in."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    put: dict[str, list[int]] = defaultdict(list)
    taken: dict[str, list[int]] = defaultdict(list)
    for number, (owner, take) in enumerate(steps):
        if take and len(queue):
            whose, item = queue.take()
            taken[whose].append(item)
        else:
            queue.put(owner, (owner, number))
            put[owner].append(number)
    assert len(queue) == sum(map(len, put.values())) - sum(map(len, taken.values()))
    while len(queue):
        whose, item = queue.take()
        taken[whose].append(item)
    assert taken == put


@given(
    backlogs=BACKLOGS,
    newcomer=st.integers(1, 5),
)
def test_a_newcomer_waits_for_one_item_of_each(backlogs: dict[str, int], newcomer: int) -> None:
    """Whoever comes when others have backlogs has a turn after each of them had one."""
    queue: FairQueue[str] = FairQueue()
    for owner, count in backlogs.items():
        for _ in range(count):
            queue.put(owner, owner)
    for _ in range(newcomer):
        queue.put("new", "new")
    turns = [queue.take() for _ in range(len(backlogs) + 1)]
    assert turns[-1] == "new"
    assert "new" not in turns[:-1]


@given(backlogs=BACKLOGS, unwanted=st.sets(st.integers(0, 40)))
def test_what_is_dropped_is_forgotten_and_nothing_else(backlogs: dict[str, int], unwanted: set[int]) -> None:
    """Dropping takes out what is unwanted and leaves the rest in its order."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for owner, count in backlogs.items():
        for number in range(count):
            queue.put(owner, (owner, number))
    queue.drop(lambda item: item[1] in unwanted)
    kept = [(owner, number) for owner, count in backlogs.items() for number in range(count) if number not in unwanted]
    assert list(queue) == kept
    assert len(queue) == len(kept)
    assert sorted(queue.take() for _ in range(len(kept))) == sorted(kept)


def test_an_empty_queue_has_nobody_s_turn() -> None:
    """Taking from an empty queue raises."""
    with pytest.raises(IndexError):
        FairQueue().take()
