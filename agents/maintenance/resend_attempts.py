"""Stores how often the reconciler resent an image's event, in the object store, so that it survives restarts."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field, ValidationError

from schemas.values import Value
from streams.object_store.protocol import FileStore, ObjectMissing

_PREFIX = "reconciler/"


class Attempt(Value):
    """How often an agent's event was resent, and when last (unix seconds)."""

    count: int = 0
    at: float = 0.0


class _Noted(Value):
    generation: int
    agents: dict[str, Attempt] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Attempts:
    """One small object per overdue image, until the image has ended. Calls raise DependencyUnavailable."""

    files: FileStore

    async def images(self) -> set[str]:
        """Return the images with a resend that were not seen finished since."""
        listed = self.files.list(_PREFIX)
        return {found.key.removeprefix(_PREFIX).removesuffix(".json") async for found in listed}

    async def of(self, image_id: str, generation: int) -> dict[str, Attempt]:
        """Return the attempts for one run of an image, by agent."""
        try:
            noted = _Noted.model_validate_json(await self.files.get(_key(image_id)))
        except (ObjectMissing, ValidationError):
            return {}
        return dict(noted.agents) if noted.generation == generation else {}

    async def note(self, image_id: str, generation: int, agent: str, at: float) -> None:
        """Record one more attempt."""
        agents = await self.of(image_id, generation)
        agents[agent] = Attempt(count=agents.get(agent, Attempt()).count + 1, at=at)
        noted = _Noted(generation=generation, agents=agents)
        await self.files.put(_key(image_id), noted.model_dump_json().encode(), content_type="application/json")

    async def forget(self, image_id: str) -> None:
        """Remove the attempts of an image that has ended."""
        await self.files.delete(_key(image_id))


def _key(image_id: str) -> str:
    return f"{_PREFIX}{image_id}.json"
