"""The reference generated from the code: `python -m darkroom.generate.docs` writes it, `--check` lists outdated ones.

Deterministic and the same on every machine: only the code is read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import REGISTRY
from pydantic import BaseModel, JsonValue
from pydantic.fields import FieldInfo

from agents.maintenance.janitor import JanitorSettings
from agents.maintenance.reconciler import ReconcilerSettings
from agents.pipeline import stage
from darkroom.commands.acls import acl_table
from darkroom.generate import files
from darkroom.generate.asyncapi import asyncapi
from darkroom.generate.openapi import openapi
from darkroom.generate.permissions import COLUMNS, permission_rows
from darkroom.processes.gateway_runtime import GatewayEnvironment
from gateway.http.problems import TITLES
from schemas.events.envelope import Event
from schemas.http.problems import ProblemCode
from schemas.values import ERROR_MEANINGS, STAGES
from streams.settings import KafkaSettings, Settings
from streams.stage import Stage
from streams.telemetry.metrics import ADVICE
from streams.topics import AGENTS, SCHEDULER, Topic, all_topics

ROOT = Path(__file__).resolve().parents[2] / "docs"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
MADE = "<!-- Made by `python -m darkroom.generate.docs`; do not edit. -->\n\n"


def reference() -> dict[str, str]:
    """Return every generated file: path below docs/ -> text."""
    pages = {f"events/{kind.type}.schema.json": _json(event_schema(kind)) for kind in event_types()}
    pages["asyncapi.json"] = _json(asyncapi(KafkaSettings()))
    pages["openapi.json"] = _json(openapi())
    pages["events.md"] = events_page()
    pages["settings.md"] = settings_page()
    pages["metrics.md"] = metrics_page()
    pages["errors.md"] = errors_page()
    pages["permissions.md"] = permissions_page()
    pages["stages.md"] = stages_page()
    pages["kafka-acls.md"] = acls_page()
    return pages


def event_types() -> list[type[Event]]:
    """Return every event of the topic table, by type."""
    kinds = {kind.type: kind for topic in all_topics() for kind in topic.events}
    return [kinds[name] for name in sorted(kinds)]


def event_schema(kind: type[Event]) -> dict[str, JsonValue]:
    """Return the JSON Schema (2020-12) of an event's body, as readers accept it."""
    return {"$schema": DIALECT, "$id": f"urn:darkroom:event:{kind.type}", **kind.model_json_schema()}


def stages() -> dict[str, Stage[Any, Any, Any]]:
    """Return the stages of this build, in the order of the pipeline."""
    return {name: stage(name) for name in STAGES}


def stages_page() -> str:
    """Return the table of stages: topics, what they store, what their containers need."""
    head = ("Stage", "Version", "Reads", "Writes", "Image", "CPU", "Memory", "Lag per replica")
    text = [
        "# Stages\n\n" + MADE,
        "In pipeline order. Memory is what a pod requests and its limit; a replica is added for each so many waiting "
        "events. How to add a stage: [CONTRIBUTING.md](../CONTRIBUTING.md).\n\n",
        _table(head, map(_stage_row, stages().values())),
    ]
    return "".join(text)


def acls_page() -> str:
    """Return the table of what each process may do with which topics and groups."""
    text = "Names come without the prefix; how to grant them: [kafka-security.md](kafka-security.md).\n\n"
    return "# ACLs of Kafka\n\n" + MADE + text + acl_table()


def _stage_row(found: Stage[Any, Any, Any]) -> tuple[str, ...]:
    own = found.deployment
    topics = (", ".join(f"`{topic.name}`" for topic in side) for side in (found.consumes, found.emits))
    image = "darkroom:ml" if own.models else "darkroom:slim"
    memory = f"{own.memory} to {own.memory_limit}"
    return (f"`{found.name}`", found.version, *topics, image, own.cpu, memory, str(own.lag_per_replica))


def events_page() -> str:
    """Return the readable reference of topics and events."""
    pipeline = [topic for topic in all_topics() if topic.name.startswith("image.")]
    per_agent = [topic for topic in all_topics() if topic.name.startswith(f"{AGENTS[0]}.")]
    scheduler = [topic for topic in all_topics() if topic.name.startswith(f"{SCHEDULER}.")]
    text = [
        "# Events\n\n" + MADE,
        "CloudEvents 1.0 in Kafka binary mode: the attributes are headers (`ce_id`, `ce_type`, `ce_source`, "
        "`ce_subject`, `ce_time`, `ce_specversion`), the body is JSON. Events never contain image bytes. "
        "Structured mode (`application/cloudevents+json`), upper-case ids and hashes and a byte order mark are read. "
        "Unknown fields are ignored; a change that would break a reader is a new `ce_type` version. "
        "As AsyncAPI: [asyncapi.json](asyncapi.json); as JSON Schema: [events/](events/).\n\n## Topics\n\n"
        f"Names without the prefix (`{KafkaSettings.model_fields['prefix'].default}` by default).\n\n",
        _table(("Topic", "Contains", "Key", "Written by", "Read by", "Retention"), map(_topic_row, pipeline)),
        f"\nEvery agent has five topics of its own, here those of `{AGENTS[0]}`:\n\n",
        _table(("Topic", "Contains", "Key", "Written by", "Read by", "Retention"), map(_topic_row, per_agent)),
        "\nThe scheduler of the bulk lane has:\n\n",
        _table(("Topic", "Contains", "Key", "Written by", "Read by", "Retention"), map(_topic_row, scheduler)),
    ]
    for kind in event_types():
        where = ", ".join(f"`{topic.name}`" for topic in pipeline if kind in topic.events)
        text.append(f"\n## {kind.__name__}\n\n`{kind.type}` on {where}. {_prose(kind.__doc__)}\n\n")
        schema = kind.model_json_schema()
        required = set(schema.get("required", ()))
        rows = (
            (f"`{name}`", _shape(body), "yes" if name in required else "", body.get("description", ""))
            for name, body in schema["properties"].items()
        )
        text.append(_table(("Field", "Type", "Required", "Meaning"), rows))
        text.append(f"\nSchema: [{kind.type}](events/{kind.type}.schema.json)\n")
    return "".join(text)


def settings_page() -> str:
    """Return every setting: variable, type, default, meaning."""
    text = [
        "# Settings\n\n" + MADE,
        "Every setting is an environment variable, read once at start; an invalid one stops the process with exit "
        "code 2 and its name. An empty variable counts as unset. Lists and objects are JSON.\n",
    ]
    for name, field in Settings.model_fields.items():
        text.append(_section(f"DARKROOM_{name.upper()}__", _model(field.annotation)))
    for name, field in GatewayEnvironment.model_fields.items():
        text.append(_section(f"DARKROOM_{name.upper()}__", _model(field.annotation)))
    for name, found in stages().items():
        text.append(_section(f"DARKROOM_{name.upper()}__", found.settings))
    text.append(_section("DARKROOM_RECONCILER__", ReconcilerSettings))
    text.append(_section("DARKROOM_JANITOR__", JanitorSettings))
    return "".join(text)


def metrics_page() -> str:
    """Return every metric: kind, meaning, what to do."""
    kinds = {metric.name: metric.type for metric in REGISTRY.collect()}
    rows = (
        (f"`{advice.name}`", kinds[advice.name.removesuffix("_total")], advice.meaning, advice.action)
        for advice in ADVICE
    )
    return "# Metrics\n\n" + MADE + _table(("Metric", "Kind", "Meaning", "What to do"), rows)


def errors_page() -> str:
    """Return the closed lists of codes: of events and images, and of HTTP answers."""
    text = [
        "# Error codes\n\n" + MADE,
        "Stable: a code is the metric label, the API field and the anchor on this page.\n",
    ]
    for heading, codes in ERROR_MEANINGS.items():
        text.append(f"\n## {heading}\n\n")
        text.append(_table(("Code", "Meaning"), ((_anchored(code), meaning) for code, meaning in codes.items())))
    text.append("\n## HTTP answers\n\nRFC 9457 problems, `application/problem+json`; `type` ends with the code.\n\n")
    rows = ((_anchored(code, "http-"), str(TITLES[code][0]), f"{TITLES[code][1]}.") for code in ProblemCode)
    text.append(_table(("Code", "Status", "Meaning"), rows))
    return "".join(text)


def permissions_page() -> str:
    """Return every endpoint with the scope it requires."""
    text = (
        "Each route declares its scope; a route without a declaration denies every request. `public` requires no "
        "credentials. `HEAD` requires what `GET` does; `OPTIONS` is public. Scopes do not include each other.\n\n"
    )
    return "# Permissions\n\n" + MADE + text + _table(COLUMNS, permission_rows())


def _topic_row(topic: Topic) -> tuple[str, ...]:
    days = topic.retention.total_seconds() / 86_400
    kept = f"{days:g} days" if days == int(days) else f"{int(days)} days and the delay"
    return (f"`{topic.name}`", topic.purpose, topic.key, ", ".join(topic.writers), ", ".join(topic.readers), kept)


def _section(prefix: str, model: type[BaseModel]) -> str:
    schema = model.model_json_schema()["properties"]
    rows = (
        (f"`{prefix}{name.upper()}`", _shape(schema[name]), _default(field), field.description or "")
        for name, field in model.model_fields.items()
    )
    heading = prefix.removeprefix("DARKROOM_").removesuffix("__").lower()
    return f"\n## {heading}\n\n{_prose(model.__doc__)}\n\n" + _table(("Variable", "Type", "Default", "Meaning"), rows)


def _model(annotation: object) -> type[BaseModel]:
    if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
        raise TypeError(f"settings are groups, not {annotation!r}")
    return annotation


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None or value in ("", (), [], {}):
        return "empty"
    if isinstance(value, Path):
        home = Path.home()
        shown = f"~/{value.relative_to(home).as_posix()}" if value.is_relative_to(home) else value.as_posix()
        return f"`{shown}`"
    if isinstance(value, str):
        return f"`{value}`"
    return f"`{json.dumps(value, default=_plain)}`"


def _plain(value: object) -> JsonValue:
    if isinstance(value, BaseModel):
        plain: JsonValue = value.model_dump(mode="json")
        return plain
    return str(value)


_NAMES = {"string": "text", "integer": "whole number", "boolean": "true or false"}
_FORMATS = {"path": "path", "file-path": "path", "directory-path": "path", "password": "secret", "uuid": "UUID"}
_LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def _shape(schema: Mapping[str, Any]) -> str:
    """Return a JSON Schema's accepted values in words."""
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return " or ".join(_shape(part) for part in schema[union] if part.get("type") != "null")
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    if "enum" in schema or "const" in schema:
        return " or ".join(f"`{choice}`" for choice in schema.get("enum", [schema.get("const")]))
    kind = str(schema.get("type", "anything"))
    if kind == "array":
        return f"list of {_shape(schema.get('items', {}))}"
    name = _FORMATS.get(schema.get("format", ""), _NAMES.get(kind, kind))
    if schema.get("format", "").endswith("network"):
        name = "IPv4 network" if schema["format"].startswith("ipv4") else "IPv6 network"
    return ", ".join([name, *(f"{word} {schema[limit]:g}" for limit, word in _LIMITS.items() if limit in schema)])


def _anchored(code: str, prefix: str = "") -> str:
    return f'<a id="{prefix}{code}"></a>`{code}`'


def _prose(text: str | None) -> str:
    return " ".join((text or "").split())


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def _json(document: Mapping[str, JsonValue]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def drifted(root: Path) -> list[str]:
    """Return the files that are missing, differ, or belong to an event that no longer exists."""
    return files.outdated(root, reference(), _schemas(root))


def _schemas(root: Path) -> list[str]:
    return [f"events/{path.name}" for path in (root / "events").glob("*.schema.json")]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the reference, or check it; return the exit code."""
    return files.main(
        arguments,
        command="python -m darkroom.generate.docs",
        description=__doc__,
        root=ROOT,
        prefix="docs/",
        generate=lambda _root: reference(),
        obsolete=_schemas,
    )


if __name__ == "__main__":
    sys.exit(main())
