"""Administers the broker: creates topics, compares them with the topic table, reads groups and lag.

Topics use confluent-kafka's admin client. Groups use aiokafka: librdkafka's requests to a group coordinator can crash
the process while the coordinator moves or loads (librdkafka issue 5040, pull request 5397), and a gateway sends them
every second.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.coordinator.protocol import ConsumerProtocolMemberAssignment
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError, TopicAuthorizationFailedError
from aiokafka.protocol.admin import DescribeGroupsRequest_v3, DescribeGroupsResponse_v3
from confluent_kafka import KafkaError as ConfluentError
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

from streams.errors import DependencyUnavailable, NotReady
from streams.kafka.access_errors import explained, refused, unauthorized
from streams.kafka.security import aiokafka_arguments, confluent_configuration
from streams.settings import KafkaSettings
from streams.topics import AGENTS, Topic, all_topics

LEADERS_TIMEOUT_S = 30.0
ANSWER_S = 40.0  # longer than the timeout of any single request below
OLDEST_TIMEOUT_S = 5.0

# aiokafka 0.14.0 decodes the version 3 response as version 2 and fails on the added field.
DescribeGroupsRequest_v3.RESPONSE_TYPE = DescribeGroupsResponse_v3


@dataclass(frozen=True, slots=True)
class TopicState:
    """The state on the broker of one topic of the table."""

    topic: Topic
    name: str
    partitions: int | None  # None: the topic does not exist
    problem: str | None
    unsafe: bool = False  # events could be lost or rejected: processes refuse to start


class KafkaAdmin:
    """Admin client of the broker. Blocking calls run in threads; every call raises DependencyUnavailable."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._events: deque[ConfluentError] = deque(maxlen=8)  # why connections failed, which calls do not report
        self._client = AdminClient(
            {
                **confluent_configuration(settings),
                "socket.timeout.ms": 10_000,
                "log_level": 0,
                "error_cb": self._events.append,
            }
        )

    async def create_topics(self, topics: Iterable[Topic] | None = None) -> list[str]:
        """Create the missing topics; return their names."""
        return await asyncio.to_thread(self._create, tuple(topics if topics is not None else all_topics()))

    async def topic_states(self, topics: Iterable[Topic] | None = None) -> list[TopicState]:
        """Return the state of each topic, compared with the table."""
        return await asyncio.to_thread(self._states, tuple(topics if topics is not None else all_topics()))

    async def check_topics(self, topics: Iterable[Topic]) -> None:
        """Raise NotReady if any of these topics is missing or could lose events.

        Retention is the operator's choice; a difference there is only reported.
        """
        wrong = [state for state in await self.topic_states(topics) if state.unsafe]
        if wrong:
            raise NotReady("; ".join(f"topic {state.name} {state.problem}" for state in wrong))

    async def members(self, agents: Iterable[str] = AGENTS) -> dict[str, int]:
        """Return each group's number of members with partitions, by agent."""
        async with self.groups() as client:
            groups = [self._settings.group(agent) for agent in agents]
            found: dict[str, int] = {}
            for response in await client.describe_consumer_groups(groups):
                for code, name, _state, _type, _protocol, members in (group[:6] for group in response.groups):
                    if code == GroupAuthorizationFailedError.errno:
                        raise GroupAuthorizationFailedError(name)
                    found[self._settings.logical(name)] = sum(1 for member in members if _has_partitions(member[4]))
            return found

    async def lag(self, agent: str, topics: Iterable[str]) -> int:
        """Return the lag of an agent's group over logical topics, in events."""
        return sum(end - begin for begin, end in (await self._uncommitted(agent, topics)).values())

    async def oldest(self, agent: str, topics: Iterable[str]) -> float | None:
        """Return the timestamp (unix seconds) of the oldest event not committed by an agent's group; None without lag.

        Partitions that cannot be read within OLDEST_TIMEOUT_S are skipped.
        """
        waiting = {place: span for place, span in (await self._uncommitted(agent, topics)).items() if span[1] > span[0]}
        if not waiting:
            return None
        times: dict[TopicPartition, float] = {}
        async with self._reader() as consumer:
            consumer.assign(list(waiting))
            for place, (begin, _) in waiting.items():
                consumer.seek(place, begin)
            deadline = time.monotonic() + OLDEST_TIMEOUT_S
            while len(times) < len(waiting) and time.monotonic() < deadline:
                for place, records in (await consumer.getmany(timeout_ms=500, max_records=len(waiting))).items():
                    times.setdefault(place, records[0].timestamp / 1000)
                    consumer.pause(place)
        return min(times.values(), default=None)

    async def _uncommitted(self, agent: str, topics: Iterable[str]) -> dict[TopicPartition, tuple[int, int]]:
        """Return the uncommitted offsets of a group by partition: begin, and end (exclusive)."""
        names = [self._settings.topic(name) for name in topics]
        group = self._settings.group(agent)
        async with self.groups() as client:
            described = await client.describe_topics(names)
            for topic in described:
                if topic["error_code"] == TopicAuthorizationFailedError.errno:
                    raise TopicAuthorizationFailedError(topic["topic"])
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
    async def groups(self) -> AsyncIterator[AIOKafkaAdminClient]:
        """Open a client for requests about groups. Raises DependencyUnavailable, also from its body."""
        client = AIOKafkaAdminClient(**aiokafka_arguments(self._settings), request_timeout_ms=10_000)
        try:
            async with asyncio.timeout(ANSWER_S):
                await client.start()
                yield client
        except (KafkaError, TimeoutError) as error:
            raise await explained(self._settings, error) from error
        finally:
            await client.close()

    @asynccontextmanager
    async def _reader(self) -> AsyncIterator[AIOKafkaConsumer]:
        consumer = AIOKafkaConsumer(**aiokafka_arguments(self._settings), enable_auto_commit=False)
        try:
            async with asyncio.timeout(ANSWER_S):
                await consumer.start()
                yield consumer
        except (KafkaError, TimeoutError) as error:
            raise await explained(self._settings, error) from error
        finally:
            await consumer.stop()

    def _unavailable(self, error: KafkaException | TimeoutError) -> DependencyUnavailable:
        """Return the error of a failed call of the confluent-kafka client."""
        self._client.poll(0)  # passes what happened meanwhile to `error_cb`
        happened = list(self._events)
        self._events.clear()
        return refused(self._settings, error, happened) or DependencyUnavailable(
            f"Kafka at {self._settings.bootstrap} does not answer: {error}"
        )

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
                        if error.args[0].name().endswith("AUTHORIZATION_FAILED"):
                            raise unauthorized(self._settings, f"cannot create topic {name}") from error
                        raise DependencyUnavailable(f"cannot create topic {name}: {error}") from error
            self._wait_for_leaders({topic.topic for topic in wanted})
        except (KafkaException, TimeoutError) as error:
            raise self._unavailable(error) from error
        return created

    def _wait_for_leaders(self, names: set[str]) -> None:
        """Wait until every partition has a leader: brokers learn of new topics after the controller created them."""
        deadline = time.monotonic() + LEADERS_TIMEOUT_S
        while time.monotonic() < deadline:
            found = self._client.list_topics(timeout=10).topics
            ready = {
                name
                for name in names & set(found)
                if found[name].partitions and all(part.leader >= 0 for part in found[name].partitions.values())
            }
            if ready == names:
                return
            time.sleep(0.1)
        raise DependencyUnavailable(f"no leader for {', '.join(sorted(names - ready))} after {LEADERS_TIMEOUT_S:.0f} s")

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
            raise self._unavailable(error) from error
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
            problem = f"has {partitions} partitions, expected {wanted}"
            return TopicState(topic, name, partitions, problem, unsafe=True)
        differing = [key for key, value in topic.settings().items() if actual[key] != value]
        if not differing:
            return TopicState(topic, name, partitions, None)
        unsafe = [key for key in differing if _is_unsafe(key, actual[key], topic.settings()[key])]
        key = (unsafe or differing)[0]
        problem = f"has {key} {actual[key]}, expected {topic.settings()[key]}"
        return TopicState(topic, name, partitions, problem, bool(unsafe))


def _is_unsafe(key: str, actual: str, wanted: str) -> bool:
    """Return whether a setting could lose events: compaction keeps only a key's last, a lower size limit rejects."""
    return key == "cleanup.policy" or (key == "max.message.bytes" and int(actual) < int(wanted))


def _has_partitions(assignment: bytes) -> bool:
    """Return whether a member's encoded assignment contains any partition."""
    return bool(assignment) and bool(ConsumerProtocolMemberAssignment.decode(assignment).partitions())
