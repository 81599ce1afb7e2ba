"""The schedule: deterministic by seed, with every kind of fault in the long form."""

from __future__ import annotations

from tests.storm.kinds import KINDS
from tests.storm.schedule import COMPUTING, OTHERS, POINTS, long_schedule, short_schedule


def test_a_seed_determines_the_schedule() -> None:
    """The same seed gives the same schedule, another seed a different one."""
    assert long_schedule(7, 20) == long_schedule(7, 20)
    assert long_schedule(7, 20) != long_schedule(8, 20)
    assert short_schedule(7, 2) == short_schedule(7, 2)


def test_the_long_form_has_every_kind() -> None:
    """The long schedule has at least 60 faults of every kind, in order, within the time."""
    planned = long_schedule(3, 20)
    assert len(planned) >= 60
    assert {fault.kind for fault in planned} == set(KINDS)
    starts = [fault.at_s for fault in planned]
    assert starts == sorted(starts)
    assert planned[-1].at_s + planned[-1].duration_s <= 20 * 60


def test_every_agent_is_killed_at_every_point_it_has() -> None:
    """Every agent is killed at every point; those without stored results have no point after-object."""
    killed = {fault.target for fault in long_schedule(3, 20) if fault.kind == "kill"}
    wanted = {f"{agent} {point}" for agent in COMPUTING for point in POINTS}
    wanted |= {f"{agent} {point}" for agent in OTHERS for point in POINTS if point != "after-object"}
    assert killed == wanted | {"ingest", "router"}


def test_the_short_form_has_a_dozen_kinds() -> None:
    """The short schedule kills at each point, and has faults of brokers, groups, events, store, decoder, deletions."""
    planned = short_schedule(3, 2.5)
    points = {fault.target.partition(" ")[2] for fault in planned if fault.kind == "kill"}
    assert points == set(POINTS)
    assert {
        "zombie", "leader-killed", "rebalance-storm", "duplicate-flood", "dead-letters-rejected", "store-errors",
        "decoder-segfault", "delete-races", "twins",
    } <= {fault.kind for fault in planned}  # fmt: skip
