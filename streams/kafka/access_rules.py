"""The ACLs each process needs on brokers with an authorizer, derived from the topic table.

Operations are Kafka's. Read and Write include Describe. Every process compares its topics with the table at start, for
which it needs DescribeConfigs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from streams.topics import (
    AGENTS,
    BULK,
    DELAY_TIERS,
    FACTS,
    FETCH_REQUESTED,
    GIVES_UP,
    OUTCOMES,
    PIPELINE,
    SCHEDULER,
    SCHEDULER_DEAD,
    UPLOADED,
    all_topics,
    dead_topic,
    delay_topic,
    replay_topic,
    retry_topic,
)

READER_GROUP = "reader"  # of bounded reads; it has no members and no offsets
ROUTER_GROUP = "router"


class Resource(StrEnum):
    """What an ACL is on."""

    TOPIC = "topic"
    GROUP = "group"


class Operation(StrEnum):
    """What an ACL allows."""

    READ = "Read"
    WRITE = "Write"
    DESCRIBE = "Describe"
    DESCRIBE_CONFIGS = "DescribeConfigs"
    CREATE = "Create"


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """Operations that are allowed on one topic or group; the name comes without the configured prefix."""

    resource: Resource
    name: str
    operations: tuple[Operation, ...]


def roles() -> dict[str, tuple[Rule, ...]]:
    """Return what each process needs, by its name, and the command line as `operator`."""
    return {
        "gateway": _gateway(),
        "query": _query(),
        "core": _merged(_gateway(), _query()),
        "core-embedded": _merged(_gateway(), _query(), _agent("indexer"), _reconciler()),
        ROUTER_GROUP: _router(),
        "reconciler": _reconciler(),
        **{agent: _agent(agent) for agent in AGENTS},
        "operator": _operator(),
        "other-producers": _merged(_topics(_written_by("any service"), Operation.WRITE)),
        "other-consumers": _merged(_topics(_read_by("any service"), Operation.READ)),
    }


def rules_of(process: str) -> tuple[Rule, ...]:
    """Return what a process needs; nothing for an unknown one."""
    return roles().get(process, ())


def _agent(agent: str) -> tuple[Rule, ...]:
    read = [*_read_by(agent), retry_topic(agent)]
    written = [*_written_by(agent), *_written_by("every agent")]
    return _merged(
        _topics(read, Operation.READ),
        _topics(written, Operation.WRITE),
        _checked([*read, *written]),
        _groups([agent], Operation.READ),
    )


def _router() -> tuple[Rule, ...]:
    delays = [delay_topic(agent, tier) for agent in AGENTS for tier in DELAY_TIERS]
    retries = [retry_topic(agent) for agent in AGENTS]
    forwarded = [UPLOADED.name, FETCH_REQUESTED.name]  # besides the retry topics: see streams/lanes/bulk_lane.py
    watched = [topic.name for topic in (UPLOADED, FETCH_REQUESTED, FACTS, OUTCOMES)]
    return _merged(
        _topics([*delays, BULK.name, *watched], Operation.READ),
        _topics([*retries, *forwarded, SCHEDULER_DEAD.name], Operation.WRITE),
        _checked([*delays, *retries, SCHEDULER_DEAD.name, *(topic.name for topic in PIPELINE)]),
        _groups([ROUTER_GROUP, SCHEDULER], Operation.READ),
    )


def _gateway() -> tuple[Rule, ...]:
    written = _written_by("gateway")
    return _merged(
        _topics(written, Operation.WRITE),
        _checked(written),
        _groups(AGENTS, Operation.DESCRIBE),
    )


def _query() -> tuple[Rule, ...]:
    """Live events, rates, lag, dead letters, and what an operator starts over HTTP: replays, reprocessing, a pass."""
    return _merged(
        _gateway(),
        _reconciler(),
        _topics([UPLOADED.name, FETCH_REQUESTED.name, BULK.name, FACTS.name, OUTCOMES.name], Operation.READ),
        _topics([dead_topic(agent) for agent in GIVES_UP], Operation.READ),
        _topics([replay_topic(agent) for agent in GIVES_UP], Operation.WRITE),
    )


def _reconciler() -> tuple[Rule, ...]:
    """Sends events again, and reads how far each agent has read and when its oldest event was written."""
    consumed = {name for agent in AGENTS for name in (*_read_by(agent), retry_topic(agent))}
    written = _written_by("reconciler")
    return _merged(
        _topics(written, Operation.WRITE),
        _checked(written),
        _topics([*consumed, BULK.name], Operation.READ),
        _topics([dead_topic(agent) for agent in GIVES_UP], Operation.READ),
        _groups([*AGENTS, SCHEDULER], Operation.DESCRIBE),
        _groups([READER_GROUP], Operation.READ),
    )


def _operator() -> tuple[Rule, ...]:
    """`darkroom topics`, `agents` and `dead-letters`."""
    every = [topic.name for topic in all_topics()]
    return _merged(
        _topics(every, Operation.CREATE),
        _checked(every),
        _topics([dead_topic(agent) for agent in GIVES_UP], Operation.READ),
        _topics([replay_topic(agent) for agent in GIVES_UP], Operation.WRITE),
        _groups(AGENTS, Operation.DESCRIBE),
        _groups([READER_GROUP], Operation.READ),
    )


def _read_by(reader: str) -> list[str]:
    return [topic.name for topic in PIPELINE if reader in topic.readers]


def _written_by(writer: str) -> list[str]:
    return [topic.name for topic in all_topics() if writer in topic.writers]


def _topics(names: Iterable[str], *operations: Operation) -> tuple[Rule, ...]:
    return tuple(Rule(Resource.TOPIC, name, operations) for name in names)


def _checked(names: Iterable[str]) -> tuple[Rule, ...]:
    return _topics(names, Operation.DESCRIBE, Operation.DESCRIBE_CONFIGS)


def _groups(names: Iterable[str], *operations: Operation) -> tuple[Rule, ...]:
    return tuple(Rule(Resource.GROUP, name, operations) for name in names)


def _merged(*rules: tuple[Rule, ...]) -> tuple[Rule, ...]:
    """Return one rule per resource; Describe is left out where Read or Write include it."""
    found: dict[tuple[Resource, str], set[Operation]] = {}
    for rule in (rule for some in rules for rule in some):
        found.setdefault((rule.resource, rule.name), set()).update(rule.operations)
    for operations in found.values():
        if operations & {Operation.READ, Operation.WRITE}:
            operations.discard(Operation.DESCRIBE)
    order = list(Operation)
    return tuple(
        Rule(resource, name, tuple(sorted(operations, key=order.index)))
        for (resource, name), operations in sorted(found.items())
    )
