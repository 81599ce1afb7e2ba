"""A Kafka with SASL_SSL and ACLs: the settings of a user, and granting ACLs."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
)
from confluent_kafka.admin import ResourceType as KafkaResource

from infra.local.kafka import LocalKafka
from infra.local.kafka_security import Secured
from streams.kafka.access_rules import Resource, Rule
from streams.settings import KafkaSettings

_RESOURCES = {Resource.TOPIC: KafkaResource.TOPIC, Resource.GROUP: KafkaResource.GROUP}


def sasl_fields(kafka: LocalKafka, secured: Secured, user: str, *, mechanism: str = "SCRAM-SHA-512") -> dict[str, Any]:
    """Return the fields of KafkaSettings with which a user connects by password."""
    return {
        "bootstrap": kafka.sasl_bootstrap,
        "security_protocol": "sasl_ssl",
        "ca_file": str(secured.ca_file),
        "sasl_mechanism": mechanism,
        "username": user,
        "password": secured.users[user],
    }


def mtls_fields(kafka: LocalKafka, secured: Secured, user: str) -> dict[str, Any]:
    """Return the fields of KafkaSettings with which a user connects by certificate."""
    certificate, key = secured.client_files(user)
    return {
        "bootstrap": kafka.mtls_bootstrap,
        "security_protocol": "ssl",
        "ca_file": str(secured.ca_file),
        "client_cert_file": str(certificate),
        "client_key_file": str(key),
    }


def variables(fields: Mapping[str, Any]) -> dict[str, str]:
    """Return fields of KafkaSettings as environment variables of a process."""
    return {f"DARKROOM_KAFKA__{name.upper()}": str(value) for name, value in fields.items()}


def grant(kafka: LocalKafka, names: KafkaSettings, user: str, rules: Iterable[Rule]) -> None:
    """Give a user these ACLs on topics and groups with the prefix of `names`, and wait until they apply."""
    client = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
    bindings = [
        AclBinding(
            _RESOURCES[rule.resource],
            names.topic(rule.name),  # groups have the same prefix
            ResourcePatternType.LITERAL,
            f"User:{user}",
            "*",
            AclOperation[operation.name],
            AclPermissionType.ALLOW,
        )
        for rule in rules
        for operation in rule.operations
    ]
    for future in client.create_acls(bindings, request_timeout=30).values():
        future.result(60)
    of_user = AclBindingFilter(
        KafkaResource.ANY,
        None,
        ResourcePatternType.ANY,
        f"User:{user}",
        None,
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    while not set(bindings) <= set(client.describe_acls(of_user, request_timeout=30).result(60)):
        time.sleep(0.05)  # the controller answers before the broker has applied them
