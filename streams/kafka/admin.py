"""Topics and groups on the broker: made, compared with the table, and looked at.

Topics through confluent-kafka's admin client. Groups through aiokafka: librdkafka's admin calls to a group's
coordinator can end the process when the coordinator moves or loads (librdkafka issue 5040, pull request 5397), and a
gateway asks them every second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import KafkaError
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from streams.errors import DependencyUnavailable, NotReady
from streams.settings import KafkaSettings
from streams.topics import AGENTS, Topic, all_topics

LEADERS_PATIENCE_S = 30.0
ANSWER_S = 40.0  # more than any single request below may take
OLDEST_PATIENCE_S = 5.0

# aiokafka 0.14.0 reads the answer to version 3 as one of version 2, and fails on its added field.
DescribeGroupsRequest_v3.RESPONSE_TYPE = DescribeGroupsResponse_v3


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic of the table as the broker has it."""

    topic: Topic
    name: str
    partitions: int | None  # None: it does not exist
    problem: str | None
    unsafe: bool = False  # events could be lost or refused: nothing may start on it


class KafkaAdmin:
    """The administrative side of the broker. Blocking calls run in threads; each raises DependencyUnavailable."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client = AdminClient(
            {"bootstrap.servers": settings.bootstrap, "socket.timeout.ms": 10_000, "log_level": 0}
        )

    async def create_topics(self, topics: Iterable[Topic] | None = None) -> list[str]:
        """Create what is missing; return the names created."""
        return await asyncio.to_thread(self._create, tuple(topics if topics is not None else all_topics()))

    async def topic_states(self, topics: Iterable[Topic] | None = None) -> list[TopicState]:
        """Compare the broker with the table."""
        return await asyncio.to_thread(self._states, tuple(topics if topics is not None else all_topics()))

    async def check_topics(self, topics: Iterable[Topic]) -> None:
        """Refuse to go on without these topics, or on ones that could lose events. Raises NotReady.

        How long a topic keeps its events is the operator's affair; a difference there is only shown.
        """
        wrong = [state for state in await self.topic_states(topics) if state.unsafe]
        if wrong:
            raise NotReady("; ".join(f"topic {state.name} {state.problem}" for state in wrong))

    async def members(self, agents: Iterable[str] = AGENTS) -> dict[str, int]:
        """Return how many members with partitions each agent's group has."""
        async with self._groups() as client:
            groups = [self._settings.group(agent) for agent in agents]
            found: dict[str, int] = {}
            for response in await client.describe_consumer_groups(groups):
                for _error, name, _state, _type, _protocol, members in (group[:6] for group in response.groups):
                    found[self._settings.logical(name)] = sum(1 for member in members if _has_partitions(member[4]))
            return found

    async def lag(self, agent: str, topics: Iterable[str]) -> int:
        """Return how many events of the logical topics an agent's group has not committed."""
        return sum(end - begin for begin, end in (await self._uncommitted(agent, topics)).values())

    async def oldest(self, agent: str, topics: Iterable[str]) -> float | None:
        """Return when the oldest event came (unix seconds) that an agent's group has not committed, None without any.

        What cannot be read within a few seconds is passed over.
        """
        waiting = {place: span for place, span in (await self._uncommitted(agent, topics)).items() if span[1] > span[0]}
        if not waiting:
            return None
        times: dict[TopicPartition, float] = {}
        async with self._reader() as consumer:
            consumer.assign(list(waiting))
            for place, (begin, _) in waiting.items():
                consumer.seek(place, begin)
            until = time.monotonic() + OLDEST_PATIENCE_S
            while len(times) < len(waiting) and time.monotonic() < until:
                for place, records in (await consumer.getmany(timeout_ms=500, max_records=len(waiting))).items():
                    times.setdefault(place, records[0].timestamp / 1000)
                    consumer.pause(place)
        return min(times.values(), default=None)

    async def _uncommitted(self, agent: str, topics: Iterable[str]) -> dict[TopicPartition, tuple[int, int]]:
        """Return the offsets, from and to, of what a group has not committed of each partition."""
        names = [self._settings.topic(name) for name in topics]
        group = self._settings.group(agent)
        async with self._groups() as client:
            described = await client.describe_topics(names)
            places = [
                TopicPartition(topic["topic"], partition["partition"])
                for topic in described
                for partition in topic["partitions"]
            ]
            committed = await client.list_consumer_group_offsets(group, partitions=places)
        async with self._reader() as consumer:
            ends = await consumer.end_offsets(places)
            begins = await consumer.beginning_offsets(places)
        at = {place: committed[place].offset if place in committed else 0 for place in places}
        return {place: (min(max(at[place], begins[place]), end), end) for place, end in ends.items()}

    @asynccontextmanager
    async def _groups(self) -> AsyncIterator[AIOKafkaAdminClient]:
        client = AIOKafkaAdminClient(bootstrap_servers=self._settings.bootstrap, request_timeout_ms=10_000)
        try:
            async with asyncio.timeout(ANSWER_S):
                await client.start()
                yield client
        except (KafkaError, TimeoutError) as error:
            raise DependencyUnavailable(f"Kafka at {self._settings.bootstrap} does not answer: {error!r}") from error
        finally:
            await client.close()

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(bootstrap_servers=self._settings.bootstrap, enable_auto_commit=False)
        try:
            async with asyncio.timeout(ANSWER_S):
                await consumer.start()
                yield consumer
        except (KafkaError, TimeoutError) as error:
            raise DependencyUnavailable(f"Kafka at {self._settings.bootstrap} does not answer: {error!r}") from error
        finally:
            await consumer.stop()

    def _create(self, topics: tuple[Topic, ...]) -> list[str]:
        created: list[str] = []
        try:
            existing = set(self._client.list_topics(timeout=10).topics)
            wanted = [
                NewTopic(
                    self._settings.topic(topic.name),
                    num_partitions=topic.partitions(self._settings.partitions),
                    replication_factor=self._settings.replication,
                    config={**topic.settings(), "min.insync.replicas": str(self._settings.min_insync)},
                )
                for topic in topics
                if self._settings.topic(topic.name) not in existing
            ]
            if not wanted:
                return []
            for name, future in self._client.create_topics(wanted, request_timeout=30).items():
                try:
                    future.result(ANSWER_S)
                    created.append(name)
                except KafkaException as error:
                    if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                        raise DependencyUnavailable(f"cannot create topic {name}: {error}") from error
            self._wait_for_leaders({topic.topic for topic in wanted})
        except (KafkaException, TimeoutError) as error:
            raise DependencyUnavailable(f"Kafka at {self._settings.bootstrap} does not answer: {error}") from error
        return created

    def _wait_for_leaders(self, names: set[str]) -> None:
        """Return when the broker itself knows the topics: the controller creates them, brokers learn of it later."""
        until = time.monotonic() + LEADERS_PATIENCE_S
        while time.monotonic() < until:
            found = self._client.list_topics(timeout=10).topics
            ready = {
                name
                for name in names & set(found)
                if found[name].partitions and all(part.leader >= 0 for part in found[name].partitions.values())
            }
            if ready == names:
                return
            time.sleep(0.1)
        raise DependencyUnavailable(
            f"no leader for {', '.join(sorted(names - ready))} after {LEADERS_PATIENCE_S:.0f} s"
        )

    def _states(self, topics: tuple[Topic, ...]) -> list[TopicState]:
        try:
            found = self._client.list_topics(timeout=10).topics
            names = {topic: self._settings.topic(topic.name) for topic in topics}
            resources = [ConfigResource("topic", name) for name in names.values() if name in found]
            configs = {
                resource.name: future.result(ANSWER_S)
                for resource, future in (self._client.describe_configs(resources) if resources else {}).items()
            }
        except (KafkaException, TimeoutError) as error:
            raise DependencyUnavailable(f"Kafka at {self._settings.bootstrap} does not answer: {error}") from error
        states = []
        for topic, name in names.items():
            if name not in found:
                states.append(TopicState(topic, name, None, "is missing: run `darkroom topics create`", unsafe=True))
                continue
            actual = {key: configs[name][key].value for key in topic.settings()}
            states.append(self._compared(topic, len(found[name].partitions), actual))
        return states

    def _compared(self, topic: Topic, partitions: int, actual: dict[str, str]) -> TopicState:
        name, wanted = self._settings.topic(topic.name), topic.partitions(self._settings.partitions)
        if partitions != wanted:
            problem = f"has {partitions} partitions, the settings say {wanted}"
            return TopicState(topic, name, partitions, problem, unsafe=True)
        differing = [key for key, value in topic.settings().items() if actual[key] != value]
        if not differing:
            return TopicState(topic, name, partitions, None)
        unsafe = [key for key in differing if _is_unsafe(key, actual[key], topic.settings()[key])]
        key = (unsafe or differing)[0]
        problem = f"has {key} {actual[key]}, the table says {topic.settings()[key]}"
        return TopicState(topic, name, partitions, problem, bool(unsafe))


def _is_unsafe(key: str, actual: str, wanted: str) -> bool:
    """Say whether a topic's setting could lose events: compaction drops all but a key's last, a small limit refuses."""
    return key == "cleanup.policy" or (key == "max.message.bytes" and int(actual) < int(wanted))


def _has_partitions(assignment: bytes) -> bool:
    """Say whether a member's assignment, as the group's protocol encodes it, names any partition."""
    return bool(assignment) and bool(ConsumerProtocolMemberAssignment.decode(assignment).partitions())
