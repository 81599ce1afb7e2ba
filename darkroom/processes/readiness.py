"""Readiness of a gateway process: the health parts of Kafka, agents, breakers and stores."""

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
    """The agents' consumer groups; concurrent health parts share one request."""

    admin: KafkaAdmin
    timeout_s: float
    _request: asyncio.Task[dict[str, int]] | None = None

    async def members(self) -> dict[str, int]:
        """Return each group's number of members with partitions. Raises DependencyUnavailable, TimeoutError."""
        if self._request is None or self._request.done():
            self._request = asyncio.create_task(bounded(self.admin.members(), self.timeout_s))
            # Retrieve the exception: the request may fail after all waiters were cancelled.
            self._request.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._request)


def kafka_part(groups: Groups) -> Part:
    """Return the health part of the brokers."""

    async def check() -> tuple[bool, str]:
        await groups.members()
        return True, "the brokers answer"

    return check


def agents_part(groups: Groups, control: Control, agents: tuple[str, ...] = AGENTS) -> Part:
    """Return the health part of the agents: each group needs a member with partitions.

    A worker joins its group only after its tools and models are loaded and checked, so membership proves more than a
    heartbeat, and needs no connection to the agent.
    """

    async def check() -> tuple[bool, str]:
        members = await groups.members()
        missing = [agent for agent in agents if not members.get(agent)]
        if missing:
            paused = {mark.agent: f"{mark.agent} (paused: {mark.reason})" for mark in await control.all()}
            return False, f"no worker of {', '.join(paused.get(agent, agent) for agent in missing)}"
        degraded = [f"{agent} skips: {reason}" for agent, reason in (await control.degraded()).items()]
        return True, "; ".join(["every agent has a worker", *degraded])

    return check


def breakers_part(breakers: Breakers) -> Part:
    """Return the health part of the circuit breakers: down while one is open, even if a single probe succeeded."""

    async def check() -> tuple[bool, str]:
        reasons = breakers.open_reasons()
        return not reasons, "; ".join(reasons) or "no breaker is open"

    return check


def worst(breakers: Breakers, *names: str) -> BreakerState:
    """Return a function for the state of a dependency with several breakers: the worst of them."""

    def state_of() -> State:
        states = breakers.states()
        return max(
            (states[name] for name in names if name in states), key=lambda state: state.value, default=State.CLOSED
        )

    return state_of


def readiness(
    settings: GatewaySettings,
    admin: KafkaAdmin,
    *,
    files: FileStore,
    breakers: Breakers,
    read_model: ReadModel | None = None,
    own_parts: Mapping[str, Part] | None = None,
) -> Parts:
    """Return the readiness of a gateway process; `own_parts` are additional parts of this process."""
    groups = Groups(admin, settings.readiness_timeout_s)
    parts: Mapping[str, Part] = {
        "files": files_part(files),
        "kafka": kafka_part(groups),
        "agents": agents_part(groups, Control(files)),
        "breakers": breakers_part(breakers),
        **({"vectors": read_model_part(read_model)} if read_model is not None else {}),
        **(own_parts or {}),
    }
    states = {
        "files": worst(breakers, object_store_breakers.READS, object_store_breakers.WRITES),
        "vectors": worst(breakers, read_model_breakers.READS, read_model_breakers.WRITES),
    }
    return Parts(parts, settings.readiness_timeout_s, settings.readiness_cache_s, states)
