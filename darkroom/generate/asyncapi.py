"""The event contract as an AsyncAPI 3.1 document with Kafka bindings 0.5.0, generated from the topic table.

Spec: https://www.asyncapi.com/docs/reference/specification/v3.1.0
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

from pydantic import JsonValue

from schemas.events.envelope import CONTENT_TYPE, Event
from schemas.events.structured_mode import SPEC_VERSION
from schemas.values import ID_PATTERN
from streams.settings import KafkaSettings
from streams.topics import AGENTS, Topic, all_topics

Object = dict[str, JsonValue]

BINDING = "0.5.0"
SCHEMA_FORMAT = "application/schema+json;version=2020-12"
# Darkroom's own producers and consumers; all others are people or other services.
SERVICES = (*AGENTS, "gateway", "router", "scheduler")


def asyncapi(kafka: KafkaSettings) -> Object:
    """Return the document: with the settings' topic names, partitions and replicas."""
    topics = all_topics()
    kinds = {kind.type: kind for topic in topics for kind in topic.events}
    return {
        "asyncapi": "3.1.0",
        "id": "urn:darkroom",
        "info": {
            "title": "Darkroom",
            "version": version("darkroom"),
            "description": "Every event of the image pipeline: CloudEvents 1.0 in Kafka binary mode. Topics have a "
            f"configurable prefix, here `{kafka.prefix}`; partitions and replicas are configurable too.",
            "license": {"name": "AGPL-3.0-or-later"},
        },
        "defaultContentType": CONTENT_TYPE,
        "servers": {"kafka": {"host": kafka.bootstrap, "protocol": "kafka", "description": "The embedded default."}},
        "channels": {topic.name: _channel(topic, kafka) for topic in topics},
        "operations": {name: body for topic in topics for name, body in _operations(topic, kafka)},
        "components": {
            "messages": {name: _message(kind) for name, kind in sorted(kinds.items())},
            "schemas": {"cloudEventHeaders": _headers()},
        },
    }


def _channel(topic: Topic, kafka: KafkaSettings) -> Object:
    settings = topic.settings()
    return {
        "address": kafka.topic(topic.name),
        "description": f"{topic.purpose} Key: {topic.key}.",
        "messages": {kind.type: {"$ref": f"#/components/messages/{kind.type}"} for kind in topic.events},
        "bindings": {
            "kafka": {
                "topic": kafka.topic(topic.name),
                "partitions": topic.partitions(kafka.partitions),
                "replicas": kafka.replication,
                "topicConfiguration": {
                    "cleanup.policy": [settings["cleanup.policy"]],
                    "retention.ms": int(settings["retention.ms"]),
                    "max.message.bytes": int(settings["max.message.bytes"]),
                },
                "bindingVersion": BINDING,
            }
        },
    }


def _operations(topic: Topic, kafka: KafkaSettings) -> Iterable[tuple[str, Object]]:
    channel: Object = {"$ref": f"#/channels/{topic.name}"}
    writers = AGENTS + topic.writers if "every agent" in topic.writers else topic.writers
    for writer in writers:
        if writer in SERVICES:
            yield f"{writer}.sends.{topic.name}", {"action": "send", "channel": channel}
    for reader in topic.readers:
        if reader in SERVICES:
            group: Object = {"type": "string", "enum": [kafka.group(reader)]}
            bindings: Object = {"kafka": {"groupId": group, "bindingVersion": BINDING}}
            operation: Object = {"action": "receive", "channel": channel, "bindings": bindings}
            yield f"{reader}.receives.{topic.name}", operation


def _message(kind: type[Event]) -> Object:
    description = (kind.__doc__ or "").strip()
    return {
        "name": kind.type,
        "title": kind.__name__,
        "summary": description.split("\n")[0],
        "contentType": CONTENT_TYPE,
        "headers": {
            "allOf": [
                {"$ref": "#/components/schemas/cloudEventHeaders"},
                {"type": "object", "properties": {"ce_type": {"const": kind.type}}},
            ]
        },
        "payload": {"schemaFormat": SCHEMA_FORMAT, "schema": {"$ref": f"./events/{kind.type}.schema.json"}},
        "bindings": {"kafka": {"key": {"type": "string"}, "bindingVersion": BINDING}},
    }


def _headers() -> Object:
    text: Object = {"type": "string"}
    return {
        "type": "object",
        "description": "CloudEvents 1.0, Kafka protocol binding section 3.2 (binary content mode).",
        "required": ["ce_specversion", "ce_id", "ce_type", "ce_source"],
        "properties": {
            "ce_specversion": {"const": SPEC_VERSION},
            "ce_id": {
                "type": "string",
                "format": "uuid",
                "description": "equal for equal work, however often repeated",
            },
            "ce_type": text,
            "ce_source": {"type": "string", "description": "producer, e.g. darkroom/sanitizer"},
            "ce_subject": {"type": "string", "pattern": ID_PATTERN, "description": "the image id"},
            "ce_time": {"type": "string", "format": "date-time"},
            "content-type": {"const": CONTENT_TYPE},
            "traceparent": {"type": "string", "description": "W3C Trace Context; one trace per image"},
        },
    }
