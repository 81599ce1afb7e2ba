"""Would an upload be carried to its end? The parts of that answer that Kafka and this process know."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from gateway.operations.health import BreakerState, Part, Parts, files_part, read_model_part
from gateway.settings import GatewaySettings
from streams.concurrency.circuit_breaker import Breakers, State
from streams.concurrency.timeouts import bounded
from streams.kafka.admin import KafkaAdmin
from streams.object_store import with_breakers as object_store_breakers
from streams.object_store.protocol import FileStore
from streams.operations.agent_pauses import Control
from streams.read_model import with_breakers as read_model_breakers
from streams.read_model.protocol import ReadModel
from streams.topics import AGENTS


@dataclass(slots=True)
class Groups:
    """The agents' consumer groups, asked for once by all parts that look at the same time."""

    admin: KafkaAdmin
    timeout_s: float
    _asking: asyncio.Task[dict[str, int]] | None = None

    async def members(self) -> dict[str, int]:
        """Return each group's number of members with partitions. Raises DependencyUnavailable, TimeoutError."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.create_task(bounded(self.admin.members(), self.timeout_s))
            # It may end with an error after everybody has stopped waiting for it.
            self._asking.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._asking)


def kafka_part(groups: Groups) -> Part:
    """Return the part that proves that the brokers answer."""

    async def check() -> tuple[bool, str]:
        await groups.members()
        return True, "the brokers answer"

    return check


def agents_part(groups: Groups, control: Control, agents: tuple[str, ...] = AGENTS) -> Part:
    """Return the part that proves that every agent's group has a member with partitions, or says why not.

    A worker joins its group only when its tools and models are loaded and answered rightly, so membership says more
    than a heartbeat would, and it needs no connection from here to any agent.
    """

    async def check() -> tuple[bool, str]:
        members = await groups.members()
        away = [agent for agent in agents if not members.get(agent)]
        if away:
            paused = {mark.agent: f"{mark.agent} (paused: {mark.reason})" for mark in await control.all()}
            return False, f"no worker of {', '.join(paused.get(agent, agent) for agent in away)}"
        lesser = [f"{agent} skips: {reason}" for agent, reason in (await control.degraded()).items()]
        return True, "; ".join(["every agent has a worker", *lesser])

    return check


def breakers_part(breakers: Breakers) -> Part:
    """Return the health part of the circuit breakers: down while one is open, even if a single probe succeeded."""

    async def check() -> tuple[bool, str]:
        reasons = breakers.open_reasons()
        return not reasons, "; ".join(reasons) or "no breaker is open"

    return check


def worst(breakers: Breakers, *names: str) -> BreakerState:
    """Return how to learn the state of a dependency that has several breakers: that of the worst."""

    def look() -> State:
        states = breakers.states()
        return max(
            (states[name] for name in names if name in states), key=lambda state: state.value, default=State.CLOSED
        )

    return look


def readiness(
    settings: GatewaySettings,
    admin: KafkaAdmin,
    *,
    files: FileStore,
    breakers: Breakers,
    read_model: ReadModel | None = None,
    said: Mapping[str, Part] | None = None,
) -> Parts:
    """Return the readiness of a gateway process; `said` are parts of this process's own."""
    groups = Groups(admin, settings.readiness_timeout_s)
    parts: Mapping[str, Part] = {
        "files": files_part(files),
        "kafka": kafka_part(groups),
        "agents": agents_part(groups, Control(files)),
        "breakers": breakers_part(breakers),
        **({"vectors": read_model_part(read_model)} if read_model is not None else {}),
        **(said or {}),
    }
    states = {
        "files": worst(breakers, object_store_breakers.ANSWERS, object_store_breakers.TAKES),
        "vectors": worst(breakers, read_model_breakers.ANSWERS, read_model_breakers.TAKES),
    }
    return Parts(parts, settings.readiness_timeout_s, settings.readiness_cache_s, states)
