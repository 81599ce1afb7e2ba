"""Agent pauses: an agent paused by its dead-letter limit or by an operator stays paused until it is resumed.

A pause is an object in the store: every replica reads it, it survives restarts, and gateways list it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from schemas.events.envelope import now
from schemas.values import Value
from streams.object_store.protocol import FileStore, ObjectMissing

_PREFIX = "control/paused/"
_DEGRADED = "control/degraded/"


class Paused(Value):
    """The pause of an agent."""

    agent: str
    reason: str
    by: str  # the worker that reached its limit, or "operator"
    at: str  # RFC 3339


@dataclass(frozen=True, slots=True)
class Control:
    """Pauses and degradations of all agents. Calls raise DependencyUnavailable."""

    files: FileStore

    async def pause(self, agent: str, reason: str, *, by: str) -> None:
        """Pause all workers of an agent. A paused agent keeps its first reason."""
        if await self.paused(agent) is None:
            mark = Paused(agent=agent, reason=reason, by=by, at=now())
            await self.files.put(_PREFIX + agent, mark.model_dump_json().encode(), content_type="application/json")

    async def resume(self, agent: str) -> bool:
        """Resume an agent; False if it was not paused."""
        stopped = await self.paused(agent) is not None
        await self.files.delete(_PREFIX + agent)
        return stopped

    async def paused(self, agent: str) -> Paused | None:
        """Return an agent's pause, None if it is not paused."""
        try:
            return Paused.model_validate_json(await self.files.get(_PREFIX + agent))
        except ObjectMissing:
            return None
        except ValidationError:
            return Paused(agent=agent, reason="unreadable pause object", by="unknown", at="")

    async def all(self) -> list[Paused]:
        """Return the pauses of all agents."""
        agents = [found.key.removeprefix(_PREFIX) async for found in self.files.list(_PREFIX)]
        return [mark for agent in sorted(agents) if (mark := await self.paused(agent)) is not None]

    async def set_degraded(self, agent: str, reason: str | None) -> None:
        """Store why an agent is degraded (without its model, its stage skips images); None removes it."""
        if reason is None:
            await self.files.delete(_DEGRADED + agent)
        else:
            await self.files.put(_DEGRADED + agent, reason.encode(), content_type="text/plain")

    async def degraded(self) -> dict[str, str]:
        """Return the reasons of degraded agents, by agent."""
        agents = [found.key.removeprefix(_DEGRADED) async for found in self.files.list(_DEGRADED)]
        reasons: dict[str, str] = {}
        for agent in sorted(agents):
            try:
                reasons[agent] = (await self.files.get(_DEGRADED + agent)).decode("utf-8", "replace")
            except ObjectMissing:
                continue
        return reasons
