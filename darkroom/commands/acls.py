"""`darkroom topics acls`: the ACLs of each process, as commands of Kafka's command line."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from typing import Annotated

import typer

from streams.kafka.access_rules import Resource, Rule, roles
from streams.settings import KafkaSettings, Settings
from streams.topics import AGENTS, DELAY_TIERS

_SUFFIXES = (*(f"delay.{tier}" for tier in DELAY_TIERS), "retry", "dead")


def acls(
    process: Annotated[str, typer.Argument(help="A process, for example sanitizer; default: all.")] = "",
    principal: Annotated[
        str, typer.Option(help="Kafka principal of the process; {process} is replaced by its name.")
    ] = "User:{process}",
    table: Annotated[bool, typer.Option("--table", help="Print the table of docs/kafka-acls.md instead.")] = False,
) -> None:
    """Print the commands that grant each process its ACLs; see docs/kafka-security.md."""
    if table:
        print(acl_table(), end="")
        return
    known = roles()
    if process and process not in known:
        raise typer.BadParameter(f"unknown process {process}; allowed: {', '.join(known)}")
    for name in [process] if process else known:
        print(f"# {name}")
        print("\n".join(grants(Settings().kafka, known[name], principal.replace("{process}", name))))


def grants(kafka: KafkaSettings, rules: Iterable[Rule], principal: str) -> list[str]:
    """Return one `kafka-acls.sh` command per rule."""
    start = f"kafka-acls.sh --bootstrap-server {kafka.bootstrap} --add --allow-principal {shlex.quote(principal)}"
    found = []
    for rule in rules:
        name = kafka.topic(rule.name) if rule.resource is Resource.TOPIC else kafka.group(rule.name)
        operations = " ".join(f"--operation {operation}" for operation in rule.operations)
        found.append(f"{start} {operations} --{rule.resource} {name}")
    return found


def acl_table() -> str:
    """Return the table of docs/kafka-acls.md: per process, the resources with the same operations in one row."""
    lines = ["| process | operations | on |", "|---|---|---|"]
    for process, rules in roles().items():
        rows: dict[tuple[Resource, str], list[str]] = {}
        for rule in rules:
            rows.setdefault((rule.resource, ", ".join(rule.operations)), []).append(rule.name)
        for (resource, operations), names in sorted(rows.items(), reverse=True):
            named = ", ".join(f"`{name}`" for name in _shortened(names))
            plural = "s" if len(names) > 1 else ""
            lines.append(f"| {process} | {operations} | {resource}{plural} {named} |")
    return "\n".join(lines) + "\n"


def _shortened(names: list[str]) -> list[str]:
    """Return names with `<agent>` for those that every agent has."""
    found = list(names)
    for suffix in _SUFFIXES:
        of_all = [f"{agent}.{suffix}" for agent in AGENTS]
        if set(of_all) <= set(found):
            found = [name for name in found if name not in of_all] + [f"<agent>.{suffix}"]
    if set(AGENTS) <= set(found):
        found = [name for name in found if name not in AGENTS] + ["<agent>"]
    return found
