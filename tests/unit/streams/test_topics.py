"""The topic table is consistent with itself, with the agents, and with the keys of events."""

from __future__ import annotations

import re

import pytest

from agents import pipeline
from schemas.events.envelope import Event
from schemas.events.facts import FACTS, DeletionRequested, Fact, ImageAnnotated, StageRetrying
from schemas.events.outcomes import OUTCOMES
from schemas.values import REQUIRED_STAGES
from streams import topics
from streams.settings import KafkaSettings
from streams.topics import AGENTS, DELAY_TIERS, PIPELINE, Topic, agent_topics, all_topics

PROCESSES = {
    "any service", "gateway", "router", "scheduler", "reconciler", "every agent", "dead-letters", "dead-letters replay",
}  # fmt: skip
TOPICS = all_topics()


def test_every_topic_is_named_once() -> None:
    """Topic names are unique and valid on the broker, prefix included."""
    names = [topic.name for topic in TOPICS]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.fullmatch(r"[a-z0-9.-]{1,200}", name)
        assert KafkaSettings().logical(KafkaSettings().topic(name)) == name


@pytest.mark.parametrize("topic", TOPICS, ids=lambda topic: topic.name)
def test_a_topic_has_writers_readers_and_events(topic: Topic) -> None:
    """Each writer and reader is an agent or a listed process, and each topic lists its events and purpose."""
    assert topic.writers
    assert topic.readers
    assert set(topic.writers) | set(topic.readers) <= set(AGENTS) | PROCESSES
    assert topic.events
    assert topic.purpose.endswith(".")
    assert int(topic.settings()["retention.ms"]) >= 24 * 3600 * 1000
    assert topic.partitions(24) >= 1


def test_every_type_is_published_on_one_topic() -> None:
    """An event type belongs to one topic, the sanitized image to two; the bulk lane queues events of other topics."""
    own = [topic for topic in PIPELINE if topic is not topics.BULK]
    shared = {kind.__name__ for kind in {k for t in own for k in t.events} if sum(kind in t.events for t in own) > 1}
    assert shared == {"ImageSanitized"}
    assert set(topics.BULK.events) <= {kind for topic in own for kind in topic.events}


def test_types_are_unique_and_versioned() -> None:
    """Each ce_type is unique and contains its version."""
    kinds: set[type[Event]] = {kind for topic in PIPELINE for kind in topic.events}
    assert len({kind.type for kind in kinds}) == len(kinds)
    for kind in kinds:
        assert re.fullmatch(r"darkroom\.image\.[a-z-]+\.v[1-9][0-9]*", kind.type)


def test_keyed_topics_have_the_same_partitions() -> None:
    """Every pipeline topic has the configured number of partitions, so that an image keeps its partition number."""
    assert {topic.partitions(24) for topic in PIPELINE} == {24}


def test_every_agent_reads_something_and_has_its_own_topics() -> None:
    """Each agent reads a pipeline topic, and has delay, retry and dead-letter topics with the same events."""
    for agent in AGENTS:
        read = {kind for topic in PIPELINE if agent in topic.readers for kind in topic.events}
        assert read, agent
        own = agent_topics(agent)
        assert len(own) == len(DELAY_TIERS) + 2
        assert [topic.name for topic in own] == [
            *(topics.delay_topic(agent, tier) for tier in DELAY_TIERS),
            topics.retry_topic(agent),
            topics.dead_topic(agent),
        ]
        for topic in own:
            assert set(topic.events) == read
            assert topic.max_bytes > max(t.max_bytes for t in PIPELINE)  # room for the added headers


def test_a_delay_is_shorter_than_its_topics_retention() -> None:
    """The retention of a delay topic exceeds its delay by days, for times when the router is down."""
    for agent in AGENTS:
        for tier, seconds in DELAY_TIERS.items():
            kept = next(t for t in agent_topics(agent) if t.name == topics.delay_topic(agent, tier)).retention
            assert kept.total_seconds() >= seconds + 2 * 86_400


def test_the_indexer_reads_every_fact() -> None:
    """All facts are published on one topic, read by the indexer alone, which publishes all outcomes."""
    assert topics.FACTS.events == FACTS
    gateways = {DeletionRequested, ImageAnnotated}  # written by gateways for an owner, not by a stage
    assert {kind for kind in FACTS if not issubclass(kind, Fact)} == {*gateways, StageRetrying}
    assert topics.FACTS.readers == ("indexer",)
    assert (topics.OUTCOMES.events, topics.OUTCOMES.writers) == (OUTCOMES, ("indexer",))


def test_required_stages_are_agents() -> None:
    """Every required stage is an agent."""
    assert set(REQUIRED_STAGES) <= set(AGENTS)


@pytest.mark.parametrize("agent", AGENTS)
def test_stages_match_the_table(agent: str) -> None:
    """A stage consumes exactly the topics that list it as reader, and emits only to those that list it as writer."""
    stage = pipeline.stage(agent)
    assert stage.name == agent
    assert set(stage.consumes) == {topic for topic in PIPELINE if agent in topic.readers}
    for topic in stage.emits:
        assert agent in topic.writers or "every agent" in topic.writers, topic.name
