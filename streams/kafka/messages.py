"""Events as Kafka messages."""

from __future__ import annotations

from schemas.events.envelope import Event, Outgoing
from streams.topics import BULK, LANE_TARGET_HEADER, Topic


def outgoing(topic: Topic, event: Event, *, source: str, traceparent: str | None) -> Outgoing:
    """Return the message of an event."""
    return Outgoing(topic.name, event.key(), event.body(), event.headers(source=source, traceparent=traceparent))


def in_bulk(message: Outgoing) -> Outgoing:
    """Return the message that queues another in the bulk lane; the scheduler forwards it to its own topic."""
    return Outgoing(
        BULK.name, message.key, message.value, (*message.headers, (LANE_TARGET_HEADER, message.topic.encode()))
    )
