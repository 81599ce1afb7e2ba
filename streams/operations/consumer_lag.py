"""Consumer lag of agents: number of uncommitted events, and time of the oldest."""

from __future__ import annotations

from dataclasses import dataclass

from streams.kafka.admin import KafkaAdmin
from streams.topics import AGENTS, BULK, PIPELINE, SCHEDULER, retry_topic


@dataclass(frozen=True, slots=True)
class Backlog:
    """Reads each agent's lag from Kafka. Calls raise DependencyUnavailable."""

    admin: KafkaAdmin

    async def oldest(self, agent: str) -> float | None:
        """Return the timestamp (unix seconds) of an agent's or the scheduler's oldest event, None without lag."""
        if agent == SCHEDULER:
            return await self.admin.oldest(SCHEDULER, [BULK.name])
        if agent not in AGENTS:
            return None
        return await self.admin.oldest(agent, _read_by(agent))

    async def waiting(self, agent: str) -> int:
        """Return the lag of an agent, or of the scheduler, in events."""
        return await self.admin.lag(agent, [BULK.name] if agent == SCHEDULER else _read_by(agent))


def _read_by(agent: str) -> list[str]:
    return [*(topic.name for topic in PIPELINE if agent in topic.readers), retry_topic(agent)]
