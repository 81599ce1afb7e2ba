"""The one table of topics: creation, AsyncAPI, scaling triggers and the docs come from it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta

from schemas.events import facts, intake, outcomes
from schemas.events.envelope import Event
from schemas.values import ANALYSIS_STAGES, STAGES

DELAY_TIERS: dict[str, float] = {"30s": 30.0, "5m": 300.0, "30m": 1800.0}  # name -> seconds
AGENTS = STAGES

MAX_MESSAGE_BYTES = 262_144  # of a pipeline event: enforces the claim check
MAX_LETTER_BYTES = 1_000_000  # of delayed and dead events: the original and the reason

_DAY = timedelta(days=1)
SEGMENT = 7 * _DAY  # Kafka's default log.roll.hours: no segment takes records for longer


@dataclass(frozen=True, slots=True)
class Topic:
    """One topic: its logical name (the configured prefix comes before it) and its contract."""

    name: str
    key: str
    events: tuple[type[Event], ...]
    retention: timedelta
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    purpose: str
    keyed: bool = field(default=True)  # keyed topics all have the same number of partitions
    max_bytes: int = MAX_MESSAGE_BYTES

    def partitions(self, configured: int) -> int:
        """Return how many partitions the topic has when keyed topics have `configured`."""
        return configured if self.keyed else min(configured, 4)

    def settings(self) -> dict[str, str]:
        """Return the broker's topic settings."""
        return {
            "cleanup.policy": "delete",
            "retention.ms": str(int(self.retention.total_seconds() * 1000)),
            "max.message.bytes": str(self.max_bytes),
        }


UPLOADED = Topic(
    "image.uploaded", "image id", (intake.ImageUploaded,), 7 * _DAY,
    ("gateway", "any service"), ("sanitizer",), "An original is stored: sanitize it.",
)  # fmt: skip
FETCH_REQUESTED = Topic(
    "image.fetch-requested", "source host", (intake.FetchRequested,), 7 * _DAY,
    ("gateway", "any service"), ("fetcher",), "Fetch an image from a URL.",
)  # fmt: skip
FETCHED = Topic(
    "image.fetched", "image id", (intake.ImageFetched,), 7 * _DAY,
    ("fetcher",), ("sanitizer",), "The original was fetched from a URL: sanitize it.",
)  # fmt: skip
SANITIZED = Topic(
    "image.sanitized", "image id", (facts.ImageSanitized,), 7 * _DAY,
    ("sanitizer",), ANALYSIS_STAGES, "The safe master is stored: analyse it.",
)  # fmt: skip
FACTS = Topic(
    "image.facts", "image id", facts.FACTS, 7 * _DAY,
    ("every agent", "gateway"), ("indexer",), "Every fact about an image.",
)  # fmt: skip
OUTCOMES = Topic(
    "image.outcomes", "image id", outcomes.OUTCOMES, 3 * _DAY,
    ("indexer",), ("any service",), "How an image ended, once per generation.",
)  # fmt: skip

BULK = Topic(
    "image.bulk", "as the event it contains",
    (intake.ImageUploaded, intake.FetchRequested, intake.ImageFetched, facts.ImageSanitized), 7 * _DAY,
    ("gateway", "reconciler", "any service"), ("scheduler",),
    "The bulk lane: events that wait for spare capacity; the header `lane.target` names their topic.",
)  # fmt: skip

PIPELINE: tuple[Topic, ...] = (UPLOADED, FETCH_REQUESTED, FETCHED, SANITIZED, FACTS, OUTCOMES, BULK)
SCHEDULER = "scheduler"  # part of the router: forwards the bulk lane; not an agent, but has dead letters
LANE_TARGET_HEADER = "lane.target"  # on events in the bulk lane: the logical topic they are forwarded to


def delay_topic(agent: str, tier: str) -> str:
    """Return the logical name of an agent's delay topic."""
    return f"{agent}.delay.{tier}"


def retry_topic(agent: str) -> str:
    """Return the logical name of the topic an agent reads beside its main ones."""
    return f"{agent}.retry"


def dead_topic(agent: str) -> str:
    """Return the logical name of an agent's dead letters."""
    return f"{agent}.dead"


def replay_topic(agent: str) -> str:
    """Return the logical name of the topic a dead letter is replayed to."""
    return BULK.name if agent == SCHEDULER else retry_topic(agent)


def _consumed_by(agent: str) -> tuple[type[Event], ...]:
    return tuple(kind for topic in PIPELINE if agent in topic.readers for kind in topic.events)


def agent_topics(agent: str) -> tuple[Topic, ...]:
    """Return the topics that belong to one consumer group: delays, retry, dead letters."""
    events = _consumed_by(agent)
    delays = (
        Topic(
            delay_topic(agent, tier), "as the original", events, timedelta(seconds=seconds) + 3 * _DAY,
            (agent,), ("router",), f"Events {agent} retries {tier} later.",
            keyed=False, max_bytes=MAX_LETTER_BYTES,
        )
        for tier, seconds in DELAY_TIERS.items()
    )  # fmt: skip
    return (
        *delays,
        Topic(
            retry_topic(agent), "as the original", events, 7 * _DAY,
            ("router", "dead-letters replay", "reconciler"), (agent,),
            f"Events for {agent} alone: after a delay, replayed or resent.",
            max_bytes=MAX_LETTER_BYTES,
        ),
        _dead(agent),
    )  # fmt: skip


def _dead(agent: str) -> Topic:
    return Topic(
        dead_topic(agent), "as the original", _consumed_by(agent), 30 * _DAY,
        (agent,), ("dead-letters",), f"Events {agent} failed to process, byte for byte, with the reason in headers.",
        keyed=False, max_bytes=MAX_LETTER_BYTES,
    )  # fmt: skip


SCHEDULER_DEAD = _dead(SCHEDULER)
GIVES_UP = (*AGENTS, SCHEDULER)  # consumer groups with dead letters


def all_topics() -> tuple[Topic, ...]:
    """Return every topic Darkroom uses."""
    return (*PIPELINE, *(topic for agent in AGENTS for topic in agent_topics(agent)), SCHEDULER_DEAD)


def longest_stay() -> timedelta:
    """Return how long a record written now may stay in the log: the longest retention plus its segment's time.

    Kafka removes whole segments: a record stays until the last one of its segment is past the retention.
    """
    return max(topic.retention for topic in all_topics()) + SEGMENT
