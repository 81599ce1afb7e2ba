"""The ACLs of each process, compared with the stage table."""

from __future__ import annotations

import pytest

from agents import pipeline
from darkroom.commands.acls import grants
from streams.kafka.access_rules import Operation, Resource, Rule, roles, rules_of
from streams.settings import KafkaSettings
from streams.topics import AGENTS, FACTS, agent_topics, all_topics, dead_topic, retry_topic


def allowed(process: str, operation: Operation) -> set[str]:
    """Return the topics on which a process has an operation."""
    return {rule.name for rule in rules_of(process) if rule.resource is Resource.TOPIC and operation in rule.operations}


@pytest.mark.parametrize("agent", AGENTS)
def test_an_agent_may_do_what_its_stage_declares_and_no_more(agent: str) -> None:
    """It reads what its stage consumes, writes what it emits, its facts, delays and dead letters, in its own group."""
    stage = pipeline.stage(agent)
    own = {topic.name for topic in agent_topics(agent)} - {retry_topic(agent)}
    assert allowed(agent, Operation.READ) == {topic.name for topic in stage.consumes} | {retry_topic(agent)}
    assert allowed(agent, Operation.WRITE) == {topic.name for topic in stage.emits} | {FACTS.name} | own
    groups = [rule for rule in rules_of(agent) if rule.resource is Resource.GROUP]
    assert groups == [Rule(Resource.GROUP, agent, (Operation.READ,))]


def test_every_topic_has_a_reader_and_a_writer() -> None:
    """No topic of the table is left without a process that may read and one that may write it."""
    every = {topic.name for topic in all_topics()}
    for operation in (Operation.READ, Operation.WRITE):
        assert set().union(*(allowed(process, operation) for process in roles())) == every


def test_no_agent_reads_dead_letters_or_writes_the_input_of_another() -> None:
    """An agent that was taken over cannot forge the uploads of clients or the outcomes of images."""
    for agent in AGENTS:
        assert dead_topic(agent) not in allowed(agent, Operation.READ)
        assert "image.uploaded" not in allowed(agent, Operation.WRITE)
        assert ("image.outcomes" in allowed(agent, Operation.WRITE)) == (agent == "indexer")


def test_an_unknown_process_has_no_rules() -> None:
    """A stage that is not in the table is not checked."""
    assert rules_of("nothing") == ()


def test_the_commands_name_prefix_and_principal() -> None:
    """One command per rule, with the names on the broker."""
    rule = Rule(Resource.TOPIC, "image.facts", (Operation.WRITE, Operation.DESCRIBE_CONFIGS))
    assert grants(KafkaSettings(prefix="dr."), [rule], "User:ocr") == [
        "kafka-acls.sh --bootstrap-server 127.0.0.1:9092 --add --allow-principal User:ocr "
        "--operation Write --operation DescribeConfigs --topic dr.image.facts"
    ]
