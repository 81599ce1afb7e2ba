"""How far agents have come: when the oldest event came that one of them has not finished."""

from __future__ import annotations

from dataclasses import dataclass

from streams.kafka.admin import KafkaAdmin
from streams.topics import AGENTS, BULK, PIPELINE, SCHEDULER, retry_topic


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits in Kafka for each agent. Raises DependencyUnavailable."""

    admin: KafkaAdmin

    async def oldest(self, agent: str) -> float | None:
        """Return when it came (unix seconds), None if nothing waits. The scheduler's events are the bulk lane."""
        if agent == SCHEDULER:
            return await self.admin.oldest(SCHEDULER, [BULK.name])
        if agent not in AGENTS:
            return None
        return await self.admin.oldest(agent, _read_by(agent))

    async def waiting(self, agent: str) -> int:
        """Return how many events wait for an agent, or for the scheduler."""
        return await self.admin.lag(agent, [BULK.name] if agent == SCHEDULER else _read_by(agent))


def _read_by(agent: str) -> list[str]:
    return [*(topic.name for topic in PIPELINE if agent in topic.readers), retry_topic(agent)]
