"""Topics and groups on the broker: made, compared with the table, and looked at (confluent-kafka's admin client)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, OffsetSpec

from streams.errors import DependencyAway
from streams.settings import KafkaSettings
from streams.topics import Topic, all_topics


@dataclass(frozen=True, slots=True)
class TopicState:
    """One topic of the table as the broker has it."""

    topic: Topic
    name: str
    partitions: int | None  # None: it does not exist
    problem: str | None


class KafkaAdmin:
    """The administrative side of the broker. Blocking calls run in threads; each raises DependencyAway."""

    def __init__(self, settings: KafkaSettings) -> None:
        self._settings = settings
        self._client = AdminClient(
            {"bootstrap.servers": settings.bootstrap, "socket.timeout.ms": 10_000, "log_level": 0}
        )

    async def create_topics(self, topics: Iterable[Topic] | None = None) -> list[str]:
        """Create what is missing; return the names created."""
        return await asyncio.to_thread(self._create, tuple(topics if topics is not None else all_topics()))

    async def topic_states(self) -> list[TopicState]:
        """Compare the broker with the table."""
        return await asyncio.to_thread(self._states)

    async def members(self) -> dict[str, int]:
        """Return how many members each of our consumer groups has, by agent."""
        return await asyncio.to_thread(self._members)

    async def lag(self, agent: str, topics: Iterable[str]) -> int:
        """Return how many events of the logical topics a group has not committed."""
        return await asyncio.to_thread(self._lag, agent, tuple(topics))

    def _create(self, topics: tuple[Topic, ...]) -> list[str]:
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
                    future.result()
                except KafkaException as error:
                    if error.args[0].name() != "TOPIC_ALREADY_EXISTS":
                        raise DependencyAway(f"cannot create topic {name}: {error}") from error
        except KafkaException as error:
            raise DependencyAway(f"Kafka at {self._settings.bootstrap} does not answer: {error}") from error
        return [topic.topic for topic in wanted]

    def _states(self) -> list[TopicState]:
        try:
            found = self._client.list_topics(timeout=10).topics
            names = {topic: self._settings.topic(topic.name) for topic in all_topics()}
            resources = [ConfigResource("topic", name) for name in names.values() if name in found]
            configs = {
                resource.name: future.result() for resource, future in self._client.describe_configs(resources).items()
            }
        except KafkaException as error:
            raise DependencyAway(f"Kafka at {self._settings.bootstrap} does not answer: {error}") from error
        states = []
        for topic, name in names.items():
            if name not in found:
                states.append(TopicState(topic, name, None, "missing: run `darkroom topics create`"))
                continue
            have = len(found[name].partitions)
            want = topic.partitions(self._settings.partitions)
            problem = f"has {have} partitions, the settings say {want}" if have != want else None
            for key, value in topic.settings().items():
                actual = configs[name][key].value
                if problem is None and actual != value:
                    problem = f"{key} is {actual}, the table says {value}"
            states.append(TopicState(topic, name, have, problem))
        return states

    def _members(self) -> dict[str, int]:
        try:
            listed = self._client.list_consumer_groups(request_timeout=10).result()
            ours = [g.group_id for g in listed.valid if g.group_id.startswith(self._settings.prefix)]
            if not ours:
                return {}
            described = self._client.describe_consumer_groups(ours, request_timeout=10)
            return {
                self._settings.logical(name): len([m for m in future.result().members if m.assignment.topic_partitions])
                for name, future in described.items()
            }
        except KafkaException as error:
            raise DependencyAway(f"Kafka at {self._settings.bootstrap} does not answer: {error}") from error

    def _lag(self, agent: str, topics: tuple[str, ...]) -> int:
        try:
            found = self._client.list_topics(timeout=10).topics
            places = [
                TopicPartition(self._settings.topic(name), number)
                for name in topics
                for number in found[self._settings.topic(name)].partitions
            ]
            group = self._settings.group(agent)
            futures = self._client.list_consumer_group_offsets([ConsumerGroupTopicPartitions(group, places)])
            committed = {
                (p.topic, p.partition): max(p.offset, 0) for p in futures[group].result().topic_partitions or []
            }
            ends = self._client.list_offsets({place: OffsetSpec.latest() for place in places})
            return sum(
                future.result().offset - committed.get((place.topic, place.partition), 0)
                for place, future in ends.items()
            )
        except KafkaException as error:
            raise DependencyAway(f"Kafka at {self._settings.bootstrap} does not answer: {error}") from error
