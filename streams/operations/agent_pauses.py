"""Agent pauses: an agent paused by its dead-letter limit or by an operator stays paused until it is resumed.

A pause is an object in the store: every replica reads it, it survives restarts, and gateways list it. Degradations
are marks in the store too, one per replica, which expire unless they are renewed: a replica that has all its models
removes only its own mark, and the mark of a crashed one does not stay.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from pydantic import ValidationError

from schemas.events.envelope import now
from schemas.values import Value
from streams.object_store.protocol import FileStore, ObjectInfo, ObjectMissing

_PREFIX = "control/paused/"
_DEGRADED = "control/degraded/"
DEGRADED_S = 60.0  # a mark counts for so long after it was last written
DEGRADED_RENEWAL_S = 15.0


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
    clock: Callable[[], float] = time.time

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

    async def set_degraded(self, agent: str, reason: str | None, *, by: str = "") -> None:
        """Store why a replica (`by`) of an agent is degraded: without its model, its stage skips images.

        The mark expires after `DEGRADED_S`; None removes it. Expired marks of other replicas are removed with it.
        """
        own = f"{_DEGRADED}{agent}@{by.replace('/', '-')}"
        if reason is None:
            await self.files.delete(own)
        else:
            await self.files.put(own, reason.encode(), content_type="text/plain")
        async for found in self._marks():
            if _agent_of(found) == agent and found.key != own and self._is_expired(found):
                await self.files.delete(found.key)

    async def degraded(self) -> dict[str, str]:
        """Return the reasons of degraded agents, by agent; several if its replicas differ."""
        reasons: dict[str, dict[str, None]] = {}
        for found in [found async for found in self._marks() if not self._is_expired(found)]:
            try:
                reason = (await self.files.get(found.key)).decode("utf-8", "replace")
            except ObjectMissing:
                continue
            reasons.setdefault(_agent_of(found), {})[reason] = None
        return {agent: "; ".join(found) for agent, found in sorted(reasons.items())}

    def _marks(self) -> AsyncIterator[ObjectInfo]:
        return self.files.list(_DEGRADED)

    def _is_expired(self, mark: ObjectInfo) -> bool:
        return mark.modified + DEGRADED_S <= self.clock()


def _agent_of(mark: ObjectInfo) -> str:
    return mark.key.removeprefix(_DEGRADED).partition("@")[0]
