"""Fair queue."""

from __future__ import annotations

from collections import Counter, defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.lanes.fair_queue import FairQueue

OWNERS = ("a", "b", "c", "d")
BACKLOGS = st.dictionaries(st.sampled_from(OWNERS), st.integers(1, 40), min_size=1)


@given(backlogs=BACKLOGS)
def test_each_of_n_owners_gets_every_nth_item(backlogs: dict[str, int]) -> None:
    """Of n owners with items, each gets one of every n, regardless of the others' backlogs."""
    queue: FairQueue[str] = FairQueue()
    for owner, count in backlogs.items():
        for _ in range(count):
            queue.put(owner, owner)
    left = Counter(backlogs)
    while len(queue):
        assert queue.owners == len(left)
        taken = [queue.take() for _ in range(len(left))]
        assert sorted(taken) == sorted(left)
        left.subtract(taken)
        left = +left
    assert not left


@given(st.lists(st.tuples(st.sampled_from(OWNERS), st.booleans()), max_size=200))
def test_nothing_is_lost_or_repeated_and_an_owner_keeps_its_order(steps: list[tuple[str, bool]]) -> None:
    """For any puts and takes, each item is returned once, and those of one owner in order."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    put: dict[str, list[int]] = defaultdict(list)
    taken: dict[str, list[int]] = defaultdict(list)
    for number, (owner, take) in enumerate(steps):
        if take and len(queue):
            taker, item = queue.take()
            taken[taker].append(item)
        else:
            queue.put(owner, (owner, number))
            put[owner].append(number)
    assert len(queue) == sum(map(len, put.values())) - sum(map(len, taken.values()))
    while len(queue):
        owner, item = queue.take()
        taken[owner].append(item)
    assert taken == put


@given(
    backlogs=BACKLOGS,
    newcomer=st.integers(1, 5),
)
def test_a_newcomer_waits_for_one_item_of_each(backlogs: dict[str, int], newcomer: int) -> None:
    """A new owner is served after one item of each owner with a backlog."""
    queue: FairQueue[str] = FairQueue()
    for owner, count in backlogs.items():
        for _ in range(count):
            queue.put(owner, owner)
    for _ in range(newcomer):
        queue.put("new", "new")
    taken = [queue.take() for _ in range(len(backlogs) + 1)]
    assert taken[-1] == "new"
    assert "new" not in taken[:-1]


@given(backlogs=BACKLOGS, unwanted=st.sets(st.integers(0, 40)))
def test_drop_removes_only_unwanted_items(backlogs: dict[str, int], unwanted: set[int]) -> None:
    """The other items keep their order."""
    queue: FairQueue[tuple[str, int]] = FairQueue()
    for owner, count in backlogs.items():
        for number in range(count):
            queue.put(owner, (owner, number))
    queue.drop(lambda item: item[1] in unwanted)
    kept = [(owner, number) for owner, count in backlogs.items() for number in range(count) if number not in unwanted]
    assert list(queue) == kept
    assert len(queue) == len(kept)
    assert sorted(queue.take() for _ in range(len(kept))) == sorted(kept)


def test_taking_from_an_empty_queue_raises() -> None:
    """An empty queue raises IndexError."""
    with pytest.raises(IndexError):
        FairQueue().take()
