"""The schedule: made from a seed, repeatable, with every kind of fault in its long form."""

from __future__ import annotations

from tests.storm.kinds import KINDS
from tests.storm.schedule import COMPUTING, OTHERS, POINTS, long_schedule, short_schedule


def test_a_seed_gives_its_schedule_again() -> None:
    """The same seed gives the same schedule, another seed another one."""
    assert long_schedule(7, 20) == long_schedule(7, 20)
    assert long_schedule(7, 20) != long_schedule(8, 20)
    assert short_schedule(7, 2) == short_schedule(7, 2)


def test_the_long_form_has_every_kind() -> None:
    """At least 60 faults in the time given, one after the other, and each kind there is among them."""
    planned = long_schedule(3, 20)
    assert len(planned) >= 60
    assert {fault.kind for fault in planned} == set(KINDS)
    starts = [fault.at_s for fault in planned]
    assert starts == sorted(starts)
    assert planned[-1].at_s + planned[-1].duration_s <= 20 * 60


def test_every_agent_is_killed_at_every_point_it_has() -> None:
    """Each agent at each of the four points; who stores no result has none after its object."""
    killed = {fault.target for fault in long_schedule(3, 20) if fault.kind == "kill"}
    wanted = {f"{agent} {point}" for agent in COMPUTING for point in POINTS}
    wanted |= {f"{agent} {point}" for agent in OTHERS for point in POINTS if point != "after-object"}
    assert killed == wanted | {"ingest", "router"}


def test_the_short_form_has_a_dozen_kinds() -> None:
    """A kill at each point, and one fault at least of brokers, groups, events, store, decoder and deletions."""
    planned = short_schedule(3, 2.5)
    points = {fault.target.partition(" ")[2] for fault in planned if fault.kind == "kill"}
    assert points == set(POINTS)
    assert {
        "zombie", "leader-killed", "rebalance-storm", "duplicate-flood", "dead-letters-away", "store-errors",
        "decoder-segfault", "delete-races", "twins",
    } <= {fault.kind for fault in planned}  # fmt: skip
