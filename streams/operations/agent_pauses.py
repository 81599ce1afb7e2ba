"""Who may consume: an agent that stopped itself, or that a person stopped, stays stopped until it is resumed.

The mark is an object, so that every replica sees it, a restart does not forget it, and a gateway can show it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import ValidationError

from schemas.events.envelope import now
from schemas.values import Value
from streams.object_store.protocol import FileStore, ObjectMissing

_PREFIX = "control/paused/"
_LESSER = "control/degraded/"


class Paused(Value):
    """Why an agent does not consume."""

    agent: str
    reason: str
    by: str  # the worker that stopped itself, or "operator"
    at: str  # RFC 3339


@dataclass(frozen=True, slots=True)
class Control:
    """The marks of all agents. Calls raise DependencyUnavailable."""

    files: FileStore

    async def pause(self, agent: str, reason: str, *, by: str) -> None:
        """Stop an agent, all its workers. One that is stopped already keeps its first reason."""
        if await self.paused(agent) is None:
            mark = Paused(agent=agent, reason=reason, by=by, at=now())
            await self.files.put(_PREFIX + agent, mark.model_dump_json().encode(), content_type="application/json")

    async def resume(self, agent: str) -> bool:
        """Let an agent consume again; False if nothing had stopped it."""
        stopped = await self.paused(agent) is not None
        await self.files.delete(_PREFIX + agent)
        return stopped

    async def paused(self, agent: str) -> Paused | None:
        """Return why an agent is stopped, None if it is not."""
        try:
            return Paused.model_validate_json(await self.files.get(_PREFIX + agent))
        except ObjectMissing:
            return None
        except ValidationError:
            return Paused(agent=agent, reason="the mark cannot be read", by="unknown", at="")

    async def all(self) -> list[Paused]:
        """Return every agent that is stopped."""
        agents = [found.key.removeprefix(_PREFIX) async for found in self.files.list(_PREFIX)]
        return [mark for agent in sorted(agents) if (mark := await self.paused(agent)) is not None]

    async def set_degraded(self, agent: str, reason: str | None) -> None:
        """Note that an agent does without something (a model: its stage skips); None: it has all."""
        if reason is None:
            await self.files.delete(_LESSER + agent)
        else:
            await self.files.put(_LESSER + agent, reason.encode(), content_type="text/plain")

    async def degraded(self) -> dict[str, str]:
        """Return what each agent that is degraded said of it."""
        agents = [found.key.removeprefix(_LESSER) async for found in self.files.list(_LESSER)]
        said: dict[str, str] = {}
        for agent in sorted(agents):
            try:
                said[agent] = (await self.files.get(_LESSER + agent)).decode("utf-8", "replace")
            except ObjectMissing:
                continue
        return said
