"""Apache Kafka on this machine: one KRaft node (broker and controller), or a node of a small cluster."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
import uuid
from base64 import urlsafe_b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from infra.local import ports, tools
from infra.local.process import Child
from infra.local.service import LocalService, ServiceFailed, listens
from infra.local.tools import Say, say_to_stderr

if TYPE_CHECKING:
    from infra.local.kafka_security import Secured  # imports `cryptography`, which agents do not install

_FORMAT_TIMEOUT_S = 60.0
_METADATA_TIMEOUT_S = 5.0

_LOG4J = """\
status = warn
appender.file.type = Console
appender.file.name = file
appender.file.layout.type = PatternLayout
appender.file.layout.pattern = %d{ISO8601} %-5p %c{1}: %m%n
rootLogger.level = warn
rootLogger.appenderRef.file.ref = file
logger.server.name = kafka.server.KafkaRaftServer
logger.server.level = info
"""


@dataclass(frozen=True, slots=True)
class Node:
    """The id and the ports of a node."""

    node_id: int
    broker_port: int
    controller_port: int


class LocalKafka(LocalService):
    """One Kafka node in `folder`; `bootstrap` is its address once started.

    If `port` is in use, a free one is chosen (0: any). Topics are never created automatically. `settings` override or
    add broker settings. `secured` adds listeners that authenticate. For a cluster, pass every node the same
    `cluster_id` and the `Node`s of all, with free ports.
    """

    name = "kafka"

    def __init__(
        self,
        folder: Path,
        *,
        port: int = 9092,
        heap: str = "512m",
        settings: Mapping[str, str] | None = None,
        node_id: int = 1,
        cluster: tuple[Node, ...] = (),
        cluster_id: str | None = None,
        java_options: Sequence[str] = (),
        secured: Secured | None = None,
        say: Say = say_to_stderr,
    ) -> None:
        super().__init__(folder, say=say)
        self._java_options = tuple(java_options)
        self._secured = secured
        self._secured_ports = (0, 0)
        self._usual_port = port
        self._heap = heap
        self._settings = dict(settings or {})
        self._node_id = node_id
        self._cluster = cluster
        self._cluster_id = cluster_id
        self._nodes: tuple[Node, ...] = cluster
        self._jars = Path()
        self._java = ""
        self._data = self.folder / "kafka"

    @property
    def bootstrap(self) -> str:
        """`host:port` of this node."""
        return f"{ports.HOST}:{self._me.broker_port}"

    @property
    def sasl_bootstrap(self) -> str:
        """`host:port` of the listener with SASL_SSL of a secured node."""
        return f"{ports.HOST}:{self._secured_ports[0]}"

    @property
    def mtls_bootstrap(self) -> str:
        """`host:port` of the listener with mTLS of a secured node."""
        return f"{ports.HOST}:{self._secured_ports[1]}"

    @property
    def _me(self) -> Node:
        for node in self._nodes:
            if node.node_id == self._node_id:
                return node
        raise ServiceFailed("kafka has no address before its start")

    def _install(self) -> None:
        self._java = tools.java()
        self._jars = tools.kafka_jars(self._say)

    def _recover(self) -> None:
        shutil.rmtree(self._unformatted, ignore_errors=True)
        if self._data.exists() and not _has_text(self._data / "meta.properties"):
            aside = self._data.with_name(f"kafka.broken-{time.time_ns()}")
            self._data.rename(aside)
            self._say(f"Kafka's data folder is only partly formatted: moved to {aside}, starting empty")

    def _choose_ports(self) -> None:
        if not self._cluster:
            broker = ports.choose(self._usual_port)
            controller = ports.choose(self._usual_port + 1 if self._usual_port else 0, taken={broker})
            self._nodes = (Node(self._node_id, broker, controller),)
            if self._secured is not None:
                sasl = ports.choose(0, taken={broker, controller})
                self._secured_ports = (sasl, ports.choose(0, taken={broker, controller, sasl}))

    async def _prepare(self) -> None:
        (self.folder / "log4j2.properties").write_text(_LOG4J)
        if self._secured is not None:
            self._secured.prepare()
        _write_properties(self._config, self._properties(self._data))
        if not self._data.exists():
            await self._format()

    async def _format(self) -> None:
        """Format a temporary folder and rename it, so that the data folder is complete or absent."""
        config = self.folder / "format.properties"
        _write_properties(config, self._properties(self._unformatted))
        cluster_id = self._cluster_id or urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
        arguments = ["format", f"--cluster-id={cluster_id}", "--config", str(config)]
        arguments += self._secured.format_arguments() if self._secured is not None else []
        child = Child(
            self._run_java("128m", "kafka.tools.StorageTool", *arguments), log_file=self.log_file, cwd=self.folder
        )
        try:
            code = await asyncio.wait_for(child.wait(), _FORMAT_TIMEOUT_S)
        finally:
            child.kill()
        if code != 0:
            raise ServiceFailed(f"kafka storage could not be formatted. {self.log_file} ends:\n{self.log_tail()}")
        config.unlink()
        self._unformatted.rename(self._data)

    def _command(self) -> list[str]:
        return self._run_java(self._heap, "kafka.Kafka", str(self._config))

    async def _answers(self) -> bool:
        if not await listens(ports.HOST, self._me.broker_port):
            return False
        return await asyncio.to_thread(_is_registered, self.bootstrap)

    def _run_java(self, heap: str, main: str, *arguments: str) -> list[str]:
        return [
            self._java, f"-Xmx{heap}", "-Xms128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1",
            "-Djava.awt.headless=true", *_shared_classes(), *self._java_options,
            f"-Dlog4j2.configurationFile={self.folder / 'log4j2.properties'}",
            "-cp", f"{self._jars}/*", main, *arguments,
        ]  # fmt: skip

    @property
    def _config(self) -> Path:
        return self.folder / "server.properties"

    @property
    def _unformatted(self) -> Path:
        return self.folder / "kafka.unformatted"

    def _properties(self, data: Path) -> dict[str, str]:
        """Return the node's settings; see `broker configs` in the docs of Kafka 4.1."""
        me, size = self._me, str(min(len(self._nodes), 3))
        return {
            "process.roles": "broker,controller",
            "node.id": str(me.node_id),
            "controller.quorum.voters": ",".join(
                f"{node.node_id}@{ports.HOST}:{node.controller_port}" for node in self._nodes
            ),
            "listeners": f"PLAINTEXT://{ports.HOST}:{me.broker_port},CONTROLLER://{ports.HOST}:{me.controller_port}",
            "advertised.listeners": f"PLAINTEXT://{ports.HOST}:{me.broker_port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "controller.listener.names": "CONTROLLER",
            "inter.broker.listener.name": "PLAINTEXT",
            "log.dirs": str(data),
            "auto.create.topics.enable": "false",
            "unclean.leader.election.enable": "false",
            "offsets.topic.replication.factor": size,
            "offsets.topic.num.partitions": "10",
            "offsets.retention.minutes": "43200",  # 30 days: a group scaled to zero must keep its offsets
            "transaction.state.log.replication.factor": size,
            "transaction.state.log.min.isr": "1",
            "transaction.state.log.num.partitions": "4",
            "share.coordinator.state.topic.replication.factor": size,
            "share.coordinator.state.topic.min.isr": "1",
            "group.initial.rebalance.delay.ms": "0",
            # A killed broker can register again only after its session has expired: 9 s by default.
            "broker.session.timeout.ms": "4000",
            "broker.heartbeat.interval.ms": "1000",
            "message.max.bytes": "1048588",
            "log.segment.bytes": str(64 * 2**20),
            "log.cleaner.dedupe.buffer.size": str(8 * 2**20),
            "num.network.threads": "2",
            "num.io.threads": "4",
            "controlled.shutdown.enable": "true",
            **self._security_properties(),
            **self._settings,
        }

    def _security_properties(self) -> dict[str, str]:
        if self._secured is None:
            return {}
        return self._secured.properties(
            ports.HOST, self._me.broker_port, self._me.controller_port, *self._secured_ports
        )


def _class_archive() -> Path:
    return tools.cache_dir() / f"kafka-{tools.KAFKA_VERSION}.jsa"


def _shared_classes() -> list[str]:
    """Return the option for the archive; Java ignores one that another version wrote."""
    archive = _class_archive()
    return [f"-XX:SharedArchiveFile={archive}"] if archive.exists() else []


async def archive_classes(say: Say = say_to_stderr) -> None:
    """Write an archive of a broker's classes into the cache, once: each later start takes a third less CPU.

    Java dumps the classes that it has loaded when a broker stops (dynamic class data sharing, JEP 350).
    """
    archive = _class_archive()
    if archive.exists():
        return
    say("Archiving the classes of Kafka, for faster starts")
    with tempfile.TemporaryDirectory() as folder:
        written = archive.with_name(f"{archive.name}.{os.getpid()}")
        options = [f"-XX:ArchiveClassesAtExit={written}"]
        try:
            async with LocalKafka(Path(folder), port=0, java_options=options, say=say):
                pass
            written.replace(archive)
        except (ServiceFailed, FileNotFoundError) as failure:
            say(f"They are not archived, which only makes starts slower: {failure}")


def _is_registered(bootstrap: str) -> bool:
    """Return whether the cluster's metadata contains the broker: it is registered and unfenced."""
    client = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 5000})
    with contextlib.suppress(KafkaException):
        brokers = client.list_topics(timeout=_METADATA_TIMEOUT_S).brokers
        return any(f"{broker.host}:{broker.port}" == bootstrap for broker in brokers.values())
    return False


def _has_text(file: Path) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return bool(file.read_text(errors="replace").strip())
    return False


def _write_properties(file: Path, properties: Mapping[str, str]) -> None:
    file.write_text("".join(f"{name}={value}\n" for name, value in properties.items()))
