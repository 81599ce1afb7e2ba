"""The embedded system: a local Kafka, the core, the router and every agent, supervised.

Each of DARKROOM_KAFKA__BOOTSTRAP, DARKROOM_FILES__ENDPOINT and DARKROOM_QDRANT__URL replaces an embedded service.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from darkroom.local.private_folder import private_folder
from gateway.client import AsyncDarkroom, Unreachable
from infra.local.kafka import LocalKafka
from infra.local.log_rotation import keep_rotated
from infra.local.minio import LocalMinio
from infra.local.ports import choose
from infra.local.service import LocalService
from infra.local.supervisor import ChildState, Supervisor, keep_running
from streams.errors import NotReady
from streams.kafka.admin import KafkaAdmin
from streams.settings import KafkaSettings
from streams.topics import AGENTS

Say = Callable[[str], None]
START_PATIENCE_S = 300.0


@dataclass(frozen=True, slots=True)
class SystemPlan:
    """What to start, in which folder and on which address."""

    folder: Path
    port: int = 8080
    host: str = "127.0.0.1"
    minio: bool = False  # MinIO instead of a directory store
    agents: tuple[str, ...] = AGENTS
    environment: Mapping[str, str] = field(default_factory=dict)  # additional settings of every process


@dataclass(frozen=True, slots=True)
class RunningSystem:
    """A running system."""

    url: str
    environment: Mapping[str, str]  # of its processes
    supervisor: Supervisor
    kafka: LocalKafka | None
    minio: LocalMinio | None
    folder: Path

    async def until_ready(self, say: Say, *, patience_s: float = START_PATIENCE_S) -> None:
        """Wait until every health part is ok. Raises NotReady, naming the parts that are not."""
        began = time.monotonic()
        reported = detail = ""
        async with AsyncDarkroom(self.url, timeout_s=10) as client:
            while time.monotonic() - began < patience_s:
                try:
                    health = await client.health()
                    if health.ready:
                        return
                    detail = ", ".join(f"{name}: {part.detail}" for name, part in health.parts.items() if not part.ok)
                except Unreachable:
                    detail = "the gateway is starting"
                broken = [s for s in self.supervisor.states().values() if s.exit_code == NOT_READY_EXIT]
                if broken:
                    raise NotReady("; ".join(f"{s.name} cannot start: {_last_line(s)}" for s in broken))
                if detail != reported:
                    reported = detail
                    say(detail)
                await asyncio.sleep(0.5)
        raise NotReady(f"not ready after {patience_s:.0f} s: {detail}; logs are in {self.folder / 'logs'}")


NOT_READY_EXIT = 2


def _last_line(state: ChildState) -> str:
    lines = state.log_file.read_text(errors="replace").strip().splitlines() if state.log_file.exists() else []
    return lines[-1][:500] if lines else f"see {state.log_file}"


@asynccontextmanager
async def running_system(plan: SystemPlan, say: Say) -> AsyncIterator[RunningSystem]:
    """Start all services and processes; on exit stop them in reverse order."""
    folder = await private_folder(plan.folder)
    logs = folder / "logs"
    await asyncio.to_thread(logs.mkdir, exist_ok=True)
    async with AsyncExitStack() as stack:
        environment = {**os.environ, **plan.environment}
        kafka = await _kafka(stack, environment, folder, say)
        minio = await _minio(stack, environment, folder, say) if plan.minio else None
        environment.setdefault("DARKROOM_FILES__DIRECTORY", str(folder / "objects"))
        environment.setdefault("DARKROOM_QDRANT__PATH", str(folder / "qdrant"))
        environment.setdefault("DARKROOM_WORKER__STATE_DIR", str(folder / "state"))
        # One machine has no network partitions, so a shorter session is safe: a killed worker is replaced sooner.
        environment.setdefault("DARKROOM_WORKER__SESSION_TIMEOUT_S", "12")
        environment["DARKROOM_GATEWAY__HOST"] = plan.host
        environment.setdefault("DARKROOM_TELEMETRY__LOG_FORMAT", "json")
        port = plan.port or choose(0)
        environment["DARKROOM_GATEWAY__PORT"] = str(port)
        say("Creating topics")
        created = await KafkaAdmin(kafka_settings(environment)).create_topics()
        say(f"{len(created)} topics created" if created else "All topics exist")

        seen: dict[str, str] = {}

        def changed(state: ChildState) -> None:
            if state.state == "backoff" and seen.get(state.name) == "running":
                say(f"{state.name} exited with code {state.exit_code}; restarting; log: {state.log_file}")
            seen[state.name] = state.state

        supervisor = await stack.enter_async_context(Supervisor(on_change=changed))
        for number, (name, command) in enumerate(_commands(plan, environment)):
            supervisor.start(
                name,
                [sys.executable, "-m", "darkroom", *command],
                log_file=logs / f"{name}.log",
                env=environment,
                tier=min(number, 1),  # the core stops last: it serves queries while the agents drain
            )
        services = [service.log_file for service in (kafka, minio) if service]
        rotating = asyncio.create_task(keep_rotated(lambda: [*logs.glob("*.log"), *services]))
        stack.callback(rotating.cancel)
        yield RunningSystem(f"http://{plan.host}:{port}", environment, supervisor, kafka, minio, folder)
        say("Stopping")


def kafka_settings(environment: Mapping[str, str]) -> KafkaSettings:
    """Return the Kafka settings of a process with these variables."""
    found = {field: environment.get(f"DARKROOM_KAFKA__{field.upper()}") for field in KafkaSettings.model_fields}
    return KafkaSettings.model_validate({field: value for field, value in found.items() if value})


async def _kafka(stack: AsyncExitStack, environment: dict[str, str], folder: Path, say: Say) -> LocalKafka | None:
    if environment.get("DARKROOM_KAFKA__BOOTSTRAP"):
        say(f"Using Kafka at {environment['DARKROOM_KAFKA__BOOTSTRAP']}")
        return None
    say("Starting Kafka")
    kafka = await stack.enter_async_context(LocalKafka(folder / "kafka", say=say))
    environment["DARKROOM_KAFKA__BOOTSTRAP"] = kafka.bootstrap
    _restart_on_exit(stack, kafka, say)
    say(f"Kafka answers at {kafka.bootstrap}")
    return kafka


async def _minio(stack: AsyncExitStack, environment: dict[str, str], folder: Path, say: Say) -> LocalMinio:
    say("Starting MinIO")
    minio = await stack.enter_async_context(LocalMinio(folder / "minio", say=say))
    environment["DARKROOM_FILES__ENDPOINT"] = minio.endpoint
    environment["DARKROOM_FILES__ACCESS_KEY"] = minio.access_key
    environment["DARKROOM_FILES__SECRET_KEY"] = minio.secret_key
    environment["DARKROOM_FILES__BUCKET"] = minio.bucket
    _restart_on_exit(stack, minio, say)
    say(f"MinIO answers at {minio.endpoint}")
    return minio


def _restart_on_exit(stack: AsyncExitStack, service: LocalService, say: Say) -> None:
    stack.callback(asyncio.create_task(keep_running(service, say=say)).cancel)


def _commands(plan: SystemPlan, environment: Mapping[str, str]) -> list[tuple[str, list[str]]]:
    """Return (name, arguments) of every process. With an embedded read model, its users run in the core."""
    qdrant_server = bool(environment.get("DARKROOM_QDRANT__URL"))
    agents = [agent for agent in plan.agents if qdrant_server or agent != "indexer"]
    others = ["router", "reconciler"] if qdrant_server else ["router"]
    return [*((name, [name]) for name in ("core", *others)), *((agent, ["agent", agent]) for agent in agents)]
