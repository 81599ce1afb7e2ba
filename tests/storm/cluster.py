"""A Kafka cluster of three nodes on this machine: replication 3, min.insync.replicas 2; nodes can be killed."""

from __future__ import annotations

import asyncio
import uuid
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import KafkaException
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ClusterMetadata,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from infra.local import ports
from infra.local.kafka import LocalKafka, Node
from infra.local.tools import say_to_stderr

_SETTINGS = {"min.insync.replicas": "2", "default.replication.factor": "3", "transaction.state.log.min.isr": "2"}
_PATIENCE_S = 120.0


@dataclass(frozen=True, slots=True)
class Cluster:
    """The nodes by id."""

    nodes: dict[int, LocalKafka]

    @property
    def bootstrap(self) -> str:
        """The addresses of all nodes."""
        return ",".join(node.bootstrap for node in self.nodes.values())

    def leader_of(self, topic: str, partition: int) -> int:
        """Return the leader of a partition; the first node if there is none. Blocking."""
        try:
            leader = self._metadata().topics[topic].partitions[partition].leader
        except KafkaException:
            leader = -1
        return leader if leader in self.nodes else min(self.nodes)

    def under_replicated(self, prefix: str) -> list[str]:
        """Return the partitions without a leader or with replicas out of sync. Blocking."""
        found = []
        for name, topic in self._metadata().topics.items():
            if not name.startswith((prefix, "__consumer_offsets")):
                continue
            for number, partition in topic.partitions.items():
                if partition.leader < 0 or len(partition.isrs) < len(partition.replicas):
                    found.append(f"{name}/{number}")
        return found

    async def restart_stopped(self, numbers: Iterable[int] | None = None) -> None:
        """Restart the stopped nodes, at their addresses and with their data."""
        wanted = self.nodes if numbers is None else {number: self.nodes[number] for number in numbers}
        await asyncio.gather(*(node.restart() for node in wanted.values() if node.pid is None))

    async def until_replicated(self, prefix: str, *, patience_s: float = _PATIENCE_S) -> bool:
        """Wait until every partition has a leader and all replicas in sync; return False on timeout."""
        try:
            async with asyncio.timeout(patience_s):
                while True:
                    try:
                        if not await asyncio.to_thread(self.under_replicated, prefix):
                            return True
                    except KafkaException:
                        pass
                    await asyncio.sleep(0.5)
        except TimeoutError:
            return False

    def _metadata(self) -> ClusterMetadata:
        return self._admin().list_topics(timeout=10)

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap, "log_level": 0, "socket.timeout.ms": 10_000})


def set_topic(bootstrap: str, topic: str, name: str, value: str) -> None:
    """Change a setting of a topic, by its name on the broker. Blocking."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({"bootstrap.servers": bootstrap, "log_level": 0, "socket.timeout.ms": 10_000})
    for future in admin.incremental_alter_configs([resource], request_timeout=30).values():
        future.result(40)


@asynccontextmanager
async def running_cluster(folder: Path, *, heap: str = "320m") -> AsyncIterator[Cluster]:
    """Run three nodes."""
    taken: set[int] = set()
    members = []
    for number in (1, 2, 3):
        broker = ports.choose(0, taken=taken)
        controller = ports.choose(0, taken=taken | {broker})
        taken |= {broker, controller}
        members.append(Node(number, broker, controller))
    cluster_id = urlsafe_b64encode(uuid.uuid4().bytes).rstrip(b"=").decode()
    nodes = {
        node.node_id: LocalKafka(
            folder / f"kafka-{node.node_id}",
            heap=heap,
            node_id=node.node_id,
            cluster=tuple(members),
            cluster_id=cluster_id,
            settings=_SETTINGS,
            say=say_to_stderr,
        )
        for node in members
    }
    async with AsyncExitStack() as stack:
        for node in nodes.values():
            stack.push_async_callback(node.stop)
        await asyncio.gather(*(node.start() for node in nodes.values()))
        yield Cluster(nodes)
