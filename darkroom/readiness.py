"""Would an upload be carried to its end? The parts of that answer that Kafka knows."""

from __future__ import annotations

from collections.abc import Mapping

from gateway.readiness import Part, Parts, files_part, vectors_part
from gateway.settings import GatewaySettings
from streams.admin import KafkaAdmin
from streams.breaker import Breakers
from streams.control import Control
from streams.files import FileStore
from streams.topics import AGENTS
from streams.vectors import ReadModel


def agents_part(admin: KafkaAdmin, control: Control, agents: tuple[str, ...] = AGENTS) -> Part:
    """Return the part that proves that every agent's group has a member with partitions, or says why not.

    A worker joins its group only when its tools and models are loaded and answered rightly, so membership says more
    than a heartbeat would, and it needs no connection from here to any agent.
    """

    async def check() -> tuple[bool, str]:
        members = await admin.members()
        away = [agent for agent in agents if not members.get(agent)]
        if away:
            paused = {mark.agent: f"{mark.agent} (paused: {mark.reason})" for mark in await control.all()}
            return False, f"no worker of {', '.join(paused.get(agent, agent) for agent in away)}"
        lesser = [f"{agent} skips: {reason}" for agent, reason in (await control.degraded()).items()]
        return True, "; ".join(["every agent has a worker", *lesser])

    return check


def breakers_part(breakers: Breakers) -> Part:
    """Return the part that says what is left alone: its calls are refused, whatever a single question found."""

    async def check() -> tuple[bool, str]:
        shut = breakers.shut()
        return not shut, "; ".join(shut) or "nothing is left alone"

    return check


def readiness(
    settings: GatewaySettings,
    admin: KafkaAdmin,
    *,
    files: FileStore,
    breakers: Breakers,
    vectors: ReadModel | None = None,
    said: Mapping[str, Part] | None = None,
) -> Parts:
    """Return the readiness of a gateway process; `said` are parts of this process's own."""
    parts: Mapping[str, Part] = {
        "files": files_part(files),
        "agents": agents_part(admin, Control(files)),
        "breakers": breakers_part(breakers),
        **({"vectors": vectors_part(vectors)} if vectors is not None else {}),
        **(said or {}),
    }
    return Parts(parts, settings.readiness_timeout_s, settings.readiness_cache_s)
