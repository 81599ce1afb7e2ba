"""Events of the bulk lane: target topic, owner, and the slot each occupies in the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

from schemas.events.envelope import Event, NotAnEvent, Outgoing, Record, decode
from schemas.values import REQUIRED_STAGES, ErrorCode
from streams.errors import Malformed
from streams.lanes.admission_control import WHOLE, Slot
from streams.topics import AGENTS, BULK, FETCH_REQUESTED, LANE_TARGET_HEADER, UPLOADED, Topic, agent_topics, retry_topic

_ENTRANCES = {kind.type: topic.name for topic in (UPLOADED, FETCH_REQUESTED) for kind in topic.events}
_AGENT_OF = {retry_topic(agent): agent for agent in AGENTS}
_TARGETS: dict[str, Topic] = {
    topic.name: topic
    for topic in (UPLOADED, FETCH_REQUESTED, *(t for agent in AGENTS for t in agent_topics(agent)))
    if topic in (UPLOADED, FETCH_REQUESTED) or topic.name in _AGENT_OF
}


@dataclass(frozen=True, slots=True)
class BulkEvent:
    """One event of the bulk lane, with the message that forwards it."""

    owner: str
    slot: Slot
    message: Outgoing

    @property
    def size(self) -> int:
        """Approximate bytes in memory."""
        headers = sum(len(name) + len(value) for name, value in self.message.headers)
        return len(self.message.value or b"") + len(self.message.key or b"") + headers


def read_bulk(record: Record) -> BulkEvent:
    """Return the event of a bulk-lane record. Raises Malformed if it has no allowed target.

    The event is forwarded byte for byte. Its target stays in a header, which marks it as bulk in the target topic.
    """
    try:
        event: Event = decode(record, BULK.events)
    except NotAnEvent as error:
        code = ErrorCode.UNKNOWN_EVENT if error.unknown else ErrorCode.MALFORMED_EVENT
        raise Malformed(str(error), code=code) from error
    named = record.header(LANE_TARGET_HEADER)
    name = named if named is not None else _ENTRANCES.get(event.type, "")
    target = _TARGETS.get(name)
    if target is None or type(event) not in target.events:
        raise Malformed(f"the bulk lane does not forward {event.type} to {name[:200]!r}", code=ErrorCode.UNKNOWN_EVENT)
    headers = record.headers if named is not None else (*record.headers, (LANE_TARGET_HEADER, name.encode()))
    stage = _AGENT_OF.get(name, WHOLE)
    ends_with = stage if stage in REQUIRED_STAGES else WHOLE  # other agents emit no fact of their own
    return BulkEvent(event.owner, Slot(event.image_id, ends_with), Outgoing(name, record.key, record.value, headers))
