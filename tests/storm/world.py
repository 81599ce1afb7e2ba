"""The system under test: three Kafka nodes, MinIO behind the proxy, two gateways, each agent as a process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from pydantic import SecretStr

from infra.local.minio import LocalMinio
from infra.local.ports import choose
from infra.local.process import Child
from infra.local.supervisor import Backoff, Supervisor
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.process.exit_codes import EXIT_NOT_READY
from streams.settings import FilesSettings, KafkaSettings
from streams.topics import AGENTS
from tests.storm import source
from tests.storm.cluster import Cluster, running_cluster
from tests.storm.core import FILE_VARIABLE, SETTINGS_VARIABLE
from tests.support.tcp_proxy import Proxy, running_proxy

WORKERS = tuple(agent for agent in AGENTS if agent != "indexer")  # the core runs the indexer
PROCESSES = ("core", "ingest", "router", *WORKERS)
SESSION_S = 6.0
TIERS = {"30s": 2, "5m": 10, "30m": 60}  # seconds: short delays for a run of minutes
WALL_S = 15.0  # limit for decoding one image
_COMMANDS = {
    "core": ("-m", "tests.storm.core"),
    "ingest": ("-m", "darkroom", "gateway"),
    "router": ("-m", "darkroom", "router"),
}
_START_PATIENCE_S = 240.0


@dataclass(slots=True)
class World:
    """The running system and its controls."""

    folder: Path
    kafka: KafkaSettings
    files: FilesSettings  # bypasses the proxy, for the checks
    cluster: Cluster
    minio: LocalMinio
    proxy: Proxy
    supervisor: Supervisor
    environment: dict[str, str]
    ports: dict[str, int]
    source_url: str
    extras: list[Child] = field(default_factory=list)

    def url(self, gateway: str) -> str:
        """Return the address of `core` or `ingest`."""
        return f"http://127.0.0.1:{self.ports[gateway]}"

    def pid(self, name: str) -> int | None:
        """Return the process id of a supervised process; None if it is not running."""
        return self.supervisor.state(name).pid

    def strike_file(self, name: str) -> Path:
        """Return the file from which a process reads its strike point."""
        return self.folder / "strikes" / name

    def read_model_file(self) -> Path:
        """Return the file from which the core reads the read model's fault."""
        return self.folder / "read-model"

    async def restart_core(self, **more: str) -> None:
        """Restart the core with additional settings; return when its indexer has joined."""
        Path(self.environment[SETTINGS_VARIABLE]).write_text(json.dumps(more))
        before = self.pid("core")
        self.supervisor.kill("core", signal.SIGTERM)
        while self.pid("core") in {None, before}:
            await asyncio.sleep(0.1)
        await self.until_members({"indexer": 1})

    def log_file(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.folder / "logs" / f"{name}.log"

    def command(self, name: str) -> list[str]:
        """Return the command of a process."""
        return [sys.executable, *_COMMANDS.get(name, ("-m", "darkroom", "agent", name))]

    def start(self, name: str) -> None:
        """Start a process and keep it running."""
        own = {"DARKROOM_STRIKE": f"@{self.strike_file(name)}"}
        if name in self.ports:
            own["DARKROOM_GATEWAY__PORT"] = str(self.ports[name])
        self.supervisor.start(
            name,
            self.command(name),
            log_file=self.log_file(name),
            env={**self.environment, **own},
            tier=int(name not in {"core", "ingest"}),
        )

    def start_second(self, name: str, **more: str) -> Child:
        """Start a second, unsupervised worker of an agent."""
        child = Child(self.command(name), log_file=self.log_file(f"{name}-2"), env={**self.environment, **more})
        self.extras.append(child)
        return child

    async def members(self) -> dict[str, int]:
        """Return the number of members with partitions by group; {} if Kafka does not answer."""
        try:
            return await KafkaAdmin(self.kafka).members((*AGENTS, "router"))
        except DependencyUnavailable:
            return {}

    async def until_members(self, wanted: dict[str, int], *, patience_s: float = _START_PATIENCE_S) -> bool:
        """Wait until each group has at least the wanted number of members; return False on timeout."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    found = await self.members()
                    if all(found.get(name, 0) >= number for name, number in wanted.items()):
                        return True
                    await asyncio.sleep(0.5)
        except TimeoutError:
            return False

    async def until_all_joined(self) -> None:
        """Wait until every group has a worker. Raises RuntimeError if a process cannot start or has not joined."""
        joining = asyncio.create_task(self.until_members(dict.fromkeys((*AGENTS, "router"), 1)))
        while not joining.done():
            for state in self.supervisor.states().values():
                if state.exit_code == EXIT_NOT_READY:
                    joining.cancel()
                    last = state.log_file.read_text().strip().splitlines()[-1:]
                    raise RuntimeError(f"{state.name} cannot start: {last}")
            await asyncio.sleep(0.5)
        if not joining.result():
            raise RuntimeError(f"not every agent has joined its group: {await self.members()}; see {self.folder}/logs")

    def processes(self) -> dict[str, psutil.Process]:
        """Return the running processes by name."""
        found = {}
        for name in PROCESSES:
            pid = self.pid(name)
            if pid is not None:
                try:
                    found[name] = psutil.Process(pid)
                except psutil.NoSuchProcess:
                    continue
        return found

    def left_behind(self) -> list[str]:
        """Return the running processes with this system's settings or files."""
        found, own = [], str(self.folder)
        for process in psutil.process_iter():
            try:
                command = process.cmdline()
                if process.environ().get("DARKROOM_STORM_FOLDER") == own or any(own in part for part in command):
                    found.append(f"{process.pid} {' '.join(command[-3:])}")
            except psutil.Error:
                continue
        return found


@asynccontextmanager
async def running_world(folder: Path, models: Path | None, cache: Path) -> AsyncIterator[World]:
    """Run the system; yield it once every group has a worker."""
    folder = folder.resolve()
    for name in ("logs", "strikes", "state"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        minio = LocalMinio(folder / "minio", port=0)
        stack.push_async_callback(minio.stop)
        starting = asyncio.create_task(minio.start())
        cluster = await stack.enter_async_context(running_cluster(folder))
        await starting
        proxy = await stack.enter_async_context(running_proxy(minio.endpoint))
        source_url = stack.enter_context(source.running())
        kafka = KafkaSettings(
            bootstrap=cluster.bootstrap,
            prefix="storm.",
            partitions=4,
            replication=3,
            min_insync=2,
            request_timeout_s=15,
        )
        files = FilesSettings(
            endpoint=minio.endpoint,
            access_key=minio.access_key,
            secret_key=SecretStr(minio.secret_key),
            bucket=minio.bucket,
        )
        await KafkaAdmin(kafka).create_topics()
        supervisor = await stack.enter_async_context(Supervisor(backoff=Backoff(first_s=0.5, most_s=6, healthy_s=8)))
        ports: dict[str, int] = {}
        for name in ("core", "ingest"):
            ports[name] = choose(0, taken=set(ports.values()))
        environment = _environment(folder, kafka, minio, proxy, models, cache.resolve())
        world = World(folder, kafka, files, cluster, minio, proxy, supervisor, environment, ports, source_url)
        stack.callback(lambda: [child.kill() for child in world.extras])
        for name in PROCESSES:
            world.start(name)
        await world.until_all_joined()
        yield world


def _environment(
    folder: Path, kafka: KafkaSettings, minio: LocalMinio, proxy: Proxy, models: Path | None, cache: Path
) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    found = {
        "DARKROOM_STORM_FOLDER": str(folder),
        FILE_VARIABLE: str(folder / "read-model"),
        SETTINGS_VARIABLE: str(folder / "core-settings.json"),
        "DARKROOM_KAFKA__BOOTSTRAP": kafka.bootstrap,
        "DARKROOM_KAFKA__PREFIX": kafka.prefix,
        "DARKROOM_KAFKA__PARTITIONS": str(kafka.partitions),
        "DARKROOM_KAFKA__REPLICATION": str(kafka.replication),
        "DARKROOM_KAFKA__MIN_INSYNC": str(kafka.min_insync),
        "DARKROOM_KAFKA__REQUEST_TIMEOUT_S": str(kafka.request_timeout_s),
        "DARKROOM_FILES__ENDPOINT": proxy.endpoint,
        "DARKROOM_FILES__ACCESS_KEY": minio.access_key,
        "DARKROOM_FILES__SECRET_KEY": minio.secret_key,
        "DARKROOM_FILES__BUCKET": minio.bucket,
        "DARKROOM_FILES__TIMEOUT_S": "5",
        "DARKROOM_QDRANT__PATH": str(folder / "qdrant"),
        "DARKROOM_WORKER__STATE_DIR": str(folder / "state"),
        "DARKROOM_WORKER__SESSION_TIMEOUT_S": str(SESSION_S),
        "DARKROOM_WORKER__COMMIT_INTERVAL_S": "0.5",
        "DARKROOM_WORKER__DRAIN_S": "15",
        "DARKROOM_WORKER__CONTROL_INTERVAL_S": "1",
        "DARKROOM_RETRY__TIERS": str(TIERS).replace("'", '"'),
        "DARKROOM_RETRY__IN_PLACE_TOTAL_S": "1",
        "DARKROOM_BREAKER__OPEN_S": "5",
        # Malformed events are injected here; the limit has its own test.
        "DARKROOM_LIMIT__SHARE": "0.5",
        "DARKROOM_SANITIZER__DECODE_WALL_S": str(WALL_S),
        "DARKROOM_SANITIZER__DEADLINE_S": "40",
        # One OCR engine, for a short restart of the worker.
        "DARKROOM_OCR__POLICY": "tesseract",
        "DARKROOM_FETCHER__ALLOWED_NETWORKS": '["127.0.0.0/8"]',
        "DARKROOM_FETCHER__REQUESTS": "100000",  # the storm has one source
        "DARKROOM_FETCHER__DEADLINE_S": "30",
        "DARKROOM_GATEWAY__STORAGE_TIMEOUT_S": "10",
        "DARKROOM_LIMITS__UPLOADS": "none",
        "DARKROOM_GATEWAY__MOST_LATE_S": "60",  # a slow machine must not shed test requests
        "DARKROOM_MODELS__DOWNLOAD": "false",
        "DARKROOM_MODELS__CACHE": str(cache),
        "DARKROOM_MODELS__THREADS": "1",
        "DARKROOM_TELEMETRY__LOG_FORMAT": "json",
    }
    if models is not None:
        found["DARKROOM_MODELS__DIR"] = str(models)
    return {**own, **found}
