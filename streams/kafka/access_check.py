"""Compares what the brokers allow this client with the ACLs its process needs, before it starts.

Without the check, a worker without its ACLs would wait for partitions, or fail with its first event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    NotCoordinatorForGroupError,
    for_code,
)
from confluent_kafka import KafkaError, KafkaException, TopicCollection
from confluent_kafka.admin import AdminClient

from streams.errors import DependencyUnavailable, NotReady
from streams.kafka.access_errors import refused, who
from streams.kafka.access_rules import Operation, Resource, Rule
from streams.kafka.admin import KafkaAdmin
from streams.kafka.security import confluent_configuration
from streams.settings import KafkaSettings

ANSWER_S = 10.0
RETRY_S = 0.2
_NO_COORDINATOR = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)
_BITS = {Operation.READ: 3, Operation.WRITE: 4, Operation.DESCRIBE: 8}  # of a group's authorized_operations (KIP-430)


async def check_access(kafka: KafkaSettings, rules: Iterable[Rule]) -> None:
    """Raise NotReady, naming each missing ACL. Checks nothing with security_protocol plaintext.

    Topics that do not exist are skipped. Raises DependencyUnavailable if the brokers do not answer.
    """
    if kafka.security_protocol == "plaintext":
        return
    wanted = tuple(rules)
    topics = {kafka.topic(rule.name): rule for rule in wanted if rule.resource is Resource.TOPIC}
    groups = {kafka.group(rule.name): rule for rule in wanted if rule.resource is Resource.GROUP}
    missing = await asyncio.to_thread(lambda: list(_on_topics(kafka, topics)))
    if groups:
        async with KafkaAdmin(kafka).groups() as client:
            for name, rule in groups.items():
                missing += _sentences(name, await _lacking(client, name, rule))
    if missing:
        raise NotReady(
            f"Kafka denies {who(kafka)} {'; '.join(missing)}: grant the ACLs in docs/kafka-security.md "
            "(`darkroom topics acls`)"
        )


def _on_topics(kafka: KafkaSettings, rules: dict[str, Rule]) -> Iterator[str]:
    """Yield the missing ACLs on topics. Blocks."""
    if not rules:
        return
    happened: list[KafkaError] = []
    client = AdminClient({**confluent_configuration(kafka), "log_level": 0, "error_cb": happened.append})
    described = client.describe_topics(
        TopicCollection(list(rules)), include_authorized_operations=True, request_timeout=ANSWER_S
    )
    for name, future in described.items():
        wanted = rules[name].operations
        try:
            allowed = {operation.name for operation in future.result(2 * ANSWER_S).authorized_operations or ()}
        except (KafkaException, TimeoutError) as error:
            code = error.args[0].code() if isinstance(error, KafkaException) else None
            if code == KafkaError.TOPIC_AUTHORIZATION_FAILED:
                yield from _sentences(name, wanted)
            elif code != KafkaError.UNKNOWN_TOPIC_OR_PART:
                client.poll(0)  # passes what happened meanwhile to `error_cb`
                raise refused(kafka, error, happened) or DependencyUnavailable(
                    f"Kafka at {kafka.bootstrap} does not answer: {error}"
                ) from error
            continue
        yield from _sentences(name, [operation for operation in wanted if operation.name not in allowed])


async def _lacking(client: AIOKafkaAdminClient, name: str, rule: Rule) -> Iterable[Operation]:
    """Return the operations on a group that this client lacks. The caller bounds the time."""
    while True:
        try:
            (response,) = await client.describe_consumer_groups([name], include_authorized_operations=True)
            ((code, *_, authorized),) = response.groups
            if code != 0:
                raise for_code(code)(name)
            return [operation for operation in rule.operations if not authorized & (1 << _BITS[operation])]
        except GroupAuthorizationFailedError:
            return rule.operations
        except _NO_COORDINATOR:  # a new cluster first creates the topic of the offsets
            await asyncio.sleep(RETRY_S)


def _sentences(name: str, operations: Iterable[Operation]) -> Iterator[str]:
    if named := ", ".join(operations):
        yield f"{named} on {name}"
