"""How far agents have come: when the oldest event came that one of them has not finished."""

from __future__ import annotations

from dataclasses import dataclass

from streams.admin import KafkaAdmin
from streams.topics import AGENTS, BULK, PIPELINE, SCHEDULER, retry_topic

_FED_BY_BULK = ("fetcher", "sanitizer")


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in Kafka for each agent. Raises DependencyAway."""

    admin: KafkaAdmin

    async def oldest(self, agent: str) -> float | None:
        """Return when it came (unix seconds), also into the bulk lane before the agent; None if nothing waits."""
        if agent not in AGENTS:
            return None
        own = [topic.name for topic in PIPELINE if agent in topic.readers]
        found = [await self.admin.oldest(agent, [*own, retry_topic(agent)])]
        if agent in _FED_BY_BULK:
            found.append(await self.admin.oldest(SCHEDULER, [BULK.name]))
        return min((at for at in found if at is not None), default=None)
