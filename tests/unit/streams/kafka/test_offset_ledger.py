"""The offset ledger."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streams.kafka.offset_ledger import Ledger, LedgerBroken, Slice

HERE = Slice("image.uploaded", 0, 1)


@given(
    offsets=st.lists(st.integers(0, 10_000), unique=True, max_size=60).map(sorted),
    data=st.data(),
)
def test_only_the_contiguous_finished_prefix_is_acked_in_order(offsets: list[int], data: st.DataObject) -> None:
    """For any order of finishing and any gaps in the log, acks are a growing finished prefix."""
    ledger: Ledger[int] = Ledger()
    for offset in offsets:
        assert ledger.take(HERE, offset, offset)
    finished: set[int] = set()
    acked: list[int] = []
    for offset in data.draw(st.permutations(offsets)):
        finished.add(offset)
        acked += ledger.finish(HERE, offset)
        assert acked == offsets[: len(acked)]
        assert set(acked) <= finished
        missing = [o for o in offsets if o not in finished]
        expected = [o for o in offsets if not missing or o < missing[0]]
        assert acked == expected
    assert acked == offsets
    assert ledger.unfinished() == 0


@example(steps=[("take", 0, 1), ("finish", 0, 1), ("take", 0, 1), ("finish", 0, 1)])
@example(steps=[("take", 0, 1), ("take", 0, 2), ("finish", 0, 1), ("take", 0, 1)])
@given(
    steps=st.lists(
        st.tuples(st.sampled_from(["take", "finish", "rebalance"]), st.integers(0, 3), st.integers(0, 30)), max_size=120
    )
)
def test_no_offset_is_acked_twice_or_unfinished_over_any_rebalances(steps: list[tuple[str, int, int]]) -> None:
    """Over arbitrary takes, finishes and rebalances, an ack is always of the newest generation, finished, and once."""
    ledger: Ledger[tuple[int, int, int]] = Ledger()
    generation = 1
    taken: dict[tuple[int, int], set[int]] = {}
    done: set[tuple[int, int, int]] = set()
    acked: list[tuple[int, int, int]] = []
    for step, partition, offset in steps:
        if step == "rebalance":
            generation += 1
            continue
        where = Slice("t", partition, generation if offset % 5 else max(1, generation - 1))
        if step == "take":
            before = taken.setdefault((partition, where.generation), set())
            if before and offset < max(before) and offset not in before:
                continue
            if ledger.take(where, offset, (partition, where.generation, offset)):
                before.add(offset)
        else:
            done.add((partition, where.generation, offset))
            acked += ledger.finish(where, offset)
    assert len(acked) == len(set(acked))
    assert set(acked) <= done
    for partition in range(4):
        order = [(g, o) for p, g, o in acked if p == partition]
        assert order == sorted(order)


def test_finishing_in_an_older_generation_acks_nothing() -> None:
    """Work that outlives its assignment acks nothing: the partition may be assigned to another worker."""
    ledger: Ledger[str] = Ledger()
    ledger.take(HERE, 5, "old")
    newer = Slice("image.uploaded", 0, 2)
    assert ledger.take(newer, 5, "new")
    assert ledger.finish(HERE, 5) == []
    assert not ledger.take(HERE, 6, "late")
    assert ledger.finish(newer, 5) == ["new"]


def test_a_revoked_partition_acks_nothing() -> None:
    """After a revoke, finishing an offset returns no handles."""
    ledger: Ledger[str] = Ledger()
    ledger.take(HERE, 5, "x")
    ledger.revoke("image.uploaded", 0)
    assert ledger.finish(HERE, 5) == []


def test_an_offset_is_taken_once() -> None:
    """A duplicate delivery within a generation is rejected."""
    ledger: Ledger[str] = Ledger()
    assert ledger.take(HERE, 5, "x")
    assert not ledger.take(HERE, 5, "x")


def test_a_lower_offset_within_a_generation_is_refused() -> None:
    """Out-of-order delivery raises LedgerBroken, which names both offsets."""
    ledger: Ledger[str] = Ledger()
    ledger.take(HERE, 5, "x")
    with pytest.raises(LedgerBroken, match="offset 4 was delivered after 5"):
        ledger.take(HERE, 4, "y")
