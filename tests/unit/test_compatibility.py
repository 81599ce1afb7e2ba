"""Compatibility with the published interfaces: what the code offers today, compared with the lists of 0.1.0.

`tests/data/compatibility` has one sorted file per interface, a line `name: JSON value` per item. Additions pass;
a removed or changed line fails with its name. After a release `python -m tests.unit.test_compatibility` appends what
is new; it neither removes nor changes a line.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
import typer.main
from prometheus_client import REGISTRY
from pydantic import BaseModel

import darkroom.main as command
from agents.maintenance.resend_attempts import Attempts
from darkroom.commands.reconcile import EXIT_OVERDUE
from darkroom.generate.docs import event_types, stages
from darkroom.generate.openapi import openapi
from darkroom.processes.gateway_runtime import GatewayEnvironment
from darkroom.processes.reconciler import ReconcilingEnvironment
from gateway.access.api_keys import KEYS
from gateway.http.problems import TITLES
from gateway.images.revisions import Revisions
from schemas.events.envelope import Record, decode
from schemas.events.facts import ImageAnnotated
from schemas.stored.idempotency import IDEMPOTENCY
from schemas.values import ErrorCode
from streams.object_store import keys
from streams.object_store.directory import open_directory_files
from streams.object_store.original_references import add_reference, claim_prefix
from streams.object_store.pending_deletions import mark_key
from streams.object_store.receipts import RECEIPTS
from streams.object_store.tombstones import Tombstones, erasure_key
from streams.operations.reprocess_jobs import PREFIX as REPROCESS
from streams.process.exit_codes import EXIT_FAUST_STOPPED, EXIT_NOT_DRAINED, EXIT_NOT_READY, EXIT_UNDELIVERABLE
from streams.process.watchdog import EXIT_STUCK
from streams.settings import FilesSettings, KafkaSettings, Settings
from streams.telemetry import metrics
from streams.topics import BULK, PIPELINE, all_topics

DATA = Path(__file__).parents[1] / "data"
LISTS = DATA / "compatibility"
EVENTS = DATA / "events"

Items = dict[str, Any]

# --- golden events


def golden_files() -> Items:
    """Return the sha256 of every golden event file."""
    return {
        str(path.relative_to(EVENTS)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(EVENTS.glob("v*/*.json"))
    }


def golden_events() -> Items:
    """Return what each golden event becomes when it is decoded and encoded again: key, headers, body field by field."""
    found: Items = {}
    for path in sorted(EVENTS.glob("v*/*.json")):
        stored = json.loads(path.read_text())
        headers = tuple((name, value.encode()) for name, value in stored["headers"].items())
        record = Record("t", 0, 0, stored["key"].encode(), json.dumps(stored["body"]).encode(), headers)
        event = decode(record, event_types())
        name = str(path.relative_to(EVENTS))
        found[f"{name} key"] = event.key().decode()
        for header, value in event.headers(source="source", traceparent="traceparent"):
            found[f"{name} header {header}"] = value.decode()
        for field, value in _leaves(json.loads(event.body())):
            found[f"{name} body {field}"] = value
        if "occurred_at" not in stored["body"]:  # the time of decoding
            del found[f"{name} body occurred_at"], found[f"{name} header ce_time"]
    return found


def _leaves(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _leaves(inner, f"{place}.{name}".lstrip("."))
    elif isinstance(value, list) and value:
        for number, inner in enumerate(value):
            yield from _leaves(inner, f"{place}[{number}]")
    else:
        yield place, value


# --- object keys

IMAGE = "0190a0b1-c2d3-7e4f-8a5b-6c7d8e9f0a1b"
OWNER, UPLOAD, HASH = "owner", "upload", "ab" * 32


def object_keys() -> Items:
    """Return the key of every kind of object, for one image, owner, upload and hash."""
    return {
        "original": keys.original_key(OWNER, HASH),
        "image folder": keys.image_prefix(IMAGE),
        "image": keys.image_key(IMAGE, 2, "thumbnail.webp"),
        "image of a rerun": keys.image_key(IMAGE, 2, "thumbnail.webp", run=3),
        "result": keys.result_key(OWNER, HASH, "ocr", "1", "0" * 16),
        "receipt": keys.receipt_key(f"{IMAGE}.1"),
        "receipts": RECEIPTS,
        "uploads of an owner": keys.uploads_prefix(OWNER),
        "upload": keys.upload_key(OWNER, UPLOAD),
        "ended upload": keys.ended_upload_key(OWNER, UPLOAD),
        "chunks of an upload": keys.pieces_prefix(OWNER, UPLOAD),
        "leases of an upload": keys.finishing_prefix(OWNER, UPLOAD),
        "staged object": keys.staged_key(OWNER, UPLOAD),
        "unfinished uploads": sorted(keys.UNFINISHED),
        "limits": [keys.KEY_BYTES, keys.SEGMENT_BYTES],
        "references to an original": claim_prefix(OWNER, HASH),
        "tombstone": erasure_key(IMAGE),
        "pending deletion": mark_key(OWNER, IMAGE),
        "API keys": KEYS,
        "idempotency keys": IDEMPOTENCY,
        "reprocess jobs": REPROCESS,
        "stored reference, tombstone, revision, attempt": asyncio.run(_stored_keys()),
    }


async def _stored_keys() -> list[str]:
    annotated = ImageAnnotated.model_validate(
        {**json.loads((EVENTS / "v1" / "annotated.json").read_text())["body"], "image_id": IMAGE, "revision": 7}
    )
    with tempfile.TemporaryDirectory() as folder:
        async with open_directory_files(FilesSettings(directory=Path(folder))) as files:
            await add_reference(files, OWNER, HASH, IMAGE)
            await Tombstones(files).request(IMAGE, OWNER, 1)
            await Revisions(files).reserve(annotated)
            await Attempts(files).note(IMAGE, 1, "ocr", 0.0)
            return [found.key async for found in files.list("")]


# --- settings


def settings() -> Items:
    """Return the default of every DARKROOM_* variable."""
    found: Items = {}
    for environment in (Settings, GatewayEnvironment, ReconcilingEnvironment):
        for group, field in environment.model_fields.items():
            assert isinstance(field.annotation, type)
            found |= _group(group, field.annotation)
    for name, stage in stages().items():
        found |= _group(name, stage.settings)
    return found


def _group(name: str, model: type[BaseModel]) -> Items:
    return {
        f"DARKROOM_{name.upper()}__{field_name.upper()}": "required" if field.is_required() else _default(field)
        for field_name, field in model.model_fields.items()
    }


def _default(field: Any) -> Any:
    return _plain(field.get_default(call_default_factory=True, validated_data={}))


def _plain(value: Any) -> Any:
    """Return a value as JSON, the same on every machine."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value).replace(str(Path.home()), "~", 1)
    if isinstance(value, (set, frozenset)):
        return sorted(map(_plain, value))
    if isinstance(value, (list, tuple)):
        return list(map(_plain, value))
    if isinstance(value, dict):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return value if value is None or isinstance(value, (str, int, float)) else str(value)


# --- metrics, topics, codes


def metric_names() -> Items:
    """Return type, labels and, of a histogram, the buckets of every metric."""
    found: Items = {}
    for advice in metrics.ADVICE:
        collector: Any = REGISTRY._names_to_collectors[advice.name]
        found[advice.name] = [collector._type, *collector._labelnames]
        if buckets := getattr(collector, "_kwargs", {}).get("buckets"):
            found[f"{advice.name} buckets"] = list(buckets)
    return found


def topics() -> Items:
    """Return contract and events of every topic."""
    found: Items = {"prefix": KafkaSettings.model_fields["prefix"].default}
    for topic in all_topics():
        found[f"{topic.name} keyed"] = topic.keyed
        if topic in PIPELINE and topic is not BULK:
            found[f"{topic.name} key"] = topic.key
        found |= {f"{topic.name} {name}": value for name, value in topic.settings().items()}
        found |= {f"{topic.name} event {kind.type}": True for kind in topic.events}
        found |= {f"{topic.name} reader {reader}": True for reader in topic.readers}
    return found


def problem_codes() -> Items:
    """Return the HTTP status of every problem code."""
    return {code.value: status for code, (status, _) in TITLES.items()}


def error_codes() -> Items:
    """Return every error code of events and images."""
    return {code.value: True for code in ErrorCode}


# --- schemas

_PROSE = ("title", "description", "examples", "example", "summary")
_NAMED = ("properties", "mapping")  # their members are names, not words of JSON Schema


def event_schemas() -> Items:
    """Return the JSON Schema of every event type, field by field, without the names of its classes."""
    found: Items = {}
    for kind in event_types():
        schema = kind.model_json_schema()
        definitions = schema.pop("$defs", {})
        found |= {f"{kind.type} {place}".strip(): value for place, value in _schema(schema, definitions)}
    return found


def http_models() -> Items:
    """Return the JSON Schema of every model of the HTTP API, field by field."""
    models: dict[str, Any] = _document()["components"]["schemas"]
    return {f"{name} {place}".strip(): value for name, model in models.items() for place, value in _schema(model, {})}


def _schema(node: Any, definitions: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Walk a schema: one item per node with its plain keywords, one per member of its lists."""
    if not isinstance(node, dict):
        yield place, True
        return
    node = _defined(node, definitions)
    yield place, {name: value for name, value in node.items() if _is_plain(name, value)}
    for name, value in node.items():
        if name == "default" or name in _PROSE:
            continue
        if isinstance(value, dict):
            inner = {f"{name}.{member}": part for member, part in value.items()} if name in _NAMED else {name: value}
        elif name == "prefixItems":
            inner = {f"{name}[{number}]": member for number, member in enumerate(value)}
        elif isinstance(value, list):
            inner = {f"{name}[{_label(_defined(member, definitions))}]": member for member in value}
            assert len(inner) == len(value), f"{place} {name}: {value}"
        else:
            continue
        for label, part in inner.items():
            yield from _schema(part, definitions, f"{place} {label}".strip())


def _defined(node: Any, definitions: Mapping[str, Any]) -> Any:
    name = node.get("$ref", "").removeprefix("#/$defs/") if isinstance(node, dict) else ""
    if name not in definitions:
        return node
    return {**definitions[name], **{keyword: value for keyword, value in node.items() if keyword != "$ref"}}


def _is_plain(name: str, value: Any) -> bool:
    return name not in _PROSE and (name == "default" or not isinstance(value, (dict, list)))


def _label(member: Any) -> str:
    if isinstance(member, dict):
        return str(member.get("$ref") or member.get("format") or member.get("type") or member.get("const"))
    return str(member)


# --- HTTP


@cache
def _document() -> dict[str, Any]:
    return openapi()


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    found: Any = _document() if "$ref" in node else node
    for step in node.get("$ref", "").split("/")[1:]:
        found = found[step]
    return dict(found)


def http_operations() -> Items:
    """Return every operation with its statuses, parameters and media types."""
    found: Items = {}
    for path, operations in _document()["paths"].items():
        for method, operation in operations.items():
            name = f"{method.upper()} {path}"
            found[name] = operation["operationId"]
            for parameter in operation.get("parameters", ()):
                stated = _resolved(parameter)
                found[f"{name} parameter {stated['in']} {stated['name']}"] = bool(stated.get("required"))
            for media_type, content in operation.get("requestBody", {}).get("content", {}).items():
                found[f"{name} body {media_type}"] = content.get("schema", {}).get("$ref")
            for status, response in operation["responses"].items():
                found[f"{name} {status}"] = True
                for media_type, content in _resolved(response).get("content", {}).items():
                    if media_type != "application/problem+json":
                        found[f"{name} {status} {media_type}"] = content.get("schema", {}).get("$ref")
    return found


# --- processes and commands


def exit_codes() -> Items:
    """Return every exit code that has a name."""
    return {
        "work not drained in time": EXIT_NOT_DRAINED,
        "not ready": EXIT_NOT_READY,
        "undeliverable": EXIT_UNDELIVERABLE,
        "event loop stuck": EXIT_STUCK,
        "Faust stopped": EXIT_FAUST_STOPPED,
        "reconcile with overdue images": EXIT_OVERDUE,
    }


def commands() -> Items:
    """Return every command, its arguments and options."""
    if not command.app.registered_groups:
        command._add_tools()
    return dict(_commands(typer.main.get_command(command.app), "darkroom"))


def _commands(found: Any, name: str) -> Iterator[tuple[str, Any]]:
    yield name, "group" if hasattr(found, "commands") else "command"
    for parameter in found.params:
        spelt = " ".join(sorted((*parameter.opts, *parameter.secondary_opts)))
        shape = {
            "required": parameter.required,
            "many": parameter.multiple or parameter.nargs != 1,
            "default": _plain(parameter.default),
            "variables": _plain(parameter.envvar),
        }
        yield f"{name} {parameter.param_type_name} {spelt}", shape
    for inner_name, inner in getattr(found, "commands", {}).items():
        yield from _commands(inner, f"{name} {inner_name}")


INTERFACES: dict[str, Callable[[], Items]] = {
    "commands": commands,
    "error_codes": error_codes,
    "event_schemas": event_schemas,
    "exit_codes": exit_codes,
    "golden_events": golden_events,
    "golden_files": golden_files,
    "http_models": http_models,
    "http_operations": http_operations,
    "metrics": metric_names,
    "object_keys": object_keys,
    "problem_codes": problem_codes,
    "settings": settings,
    "topics": topics,
}


def lines(items: Items) -> dict[str, str]:
    """Return the items as they are committed: name -> JSON."""
    assert not [name for name in items if ": " in name or "\n" in name]
    return {name: json.dumps(value, sort_keys=True, ensure_ascii=False) for name, value in items.items()}


def committed(interface: str) -> dict[str, str]:
    """Return the committed list of an interface."""
    text = (LISTS / f"{interface}.txt").read_text(encoding="utf-8")
    return dict(line.split(": ", 1) for line in text.splitlines())


def differences(before: Mapping[str, str], today: Mapping[str, str]) -> list[str]:
    """Return a line for every removed or changed item."""
    return [
        f"removed: {name} (was {value})" if name not in today else f"changed: {name}: {value} -> {today[name]}"
        for name, value in before.items()
        if today.get(name) != value
    ]


def append_new(interface: str) -> list[str]:
    """Append today's new items to a committed list; return their names."""
    path = LISTS / f"{interface}.txt"
    before = committed(interface) if path.exists() else {}
    merged = lines(INTERFACES[interface]()) | before
    path.write_text("".join(f"{name}: {value}\n" for name, value in sorted(merged.items())), encoding="utf-8")
    return sorted(merged.keys() - before.keys())


@pytest.mark.parametrize("interface", INTERFACES)
def test_nothing_published_is_removed_or_changed(interface: str) -> None:
    """Every item of the committed list exists today with the same value; additions pass."""
    before = committed(interface)
    assert before
    found = differences(before, lines(INTERFACES[interface]()))
    assert not found, f"{interface}: {len(found)} incompatible\n" + "\n".join(found)


@pytest.mark.parametrize("interface", INTERFACES)
def test_lists_are_sorted_and_without_repetition(interface: str) -> None:
    """A committed list is sorted by name and names each item once, so that its diffs are readable."""
    names = [line.split(": ", 1)[0] for line in (LISTS / f"{interface}.txt").read_text(encoding="utf-8").splitlines()]
    assert names == sorted(set(names))


def test_a_removal_and_a_change_are_named_and_an_addition_is_not() -> None:
    """The comparison names each removed and each changed item with both values, and accepts new ones."""
    assert differences({"a": "1", "b": "2", "c": "3"}, {"b": "4", "c": "3", "d": "5"}) == [
        "removed: a (was 1)",
        "changed: b: 2 -> 4",
    ]


if __name__ == "__main__":
    for name in INTERFACES:
        for added in append_new(name):
            click.echo(f"{name}: {added}")
