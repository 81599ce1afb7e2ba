"""`darkroom topics`: creates the declared topics, and compares the broker with them."""

from __future__ import annotations

import asyncio

import typer
from rich.console import Console
from rich.table import Table

from darkroom.commands.acls import acls
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Create and check the topics on the broker; print ACLs.")
app.command()(acls)


@app.command()
def create() -> None:
    """Create missing topics."""
    try:
        created = asyncio.run(KafkaAdmin(Settings().kafka).create_topics())
    except DependencyUnavailable as error:
        raise SystemExit(str(error)) from error
    print("\n".join(created) or "All topics exist.")


@app.command()
def show() -> None:
    """List all topics; exit 1 if one is missing or differs from its declaration."""
    try:
        states = asyncio.run(KafkaAdmin(Settings().kafka).topic_states())
    except DependencyUnavailable as error:
        raise SystemExit(str(error)) from error
    table = Table("topic", "key", "partitions", "written by", "read by", "problem")
    for state in states:
        topic = state.topic
        table.add_row(
            state.name,
            topic.key,
            str(state.partitions or "-"),
            ", ".join(topic.writers),
            ", ".join(topic.readers),
            state.problem or "",
        )
    Console().print(table)
    raise typer.Exit(1 if any(state.problem for state in states) else 0)
