"""`darkroom topics`: creates the declared topics, and compares the broker with them."""

from __future__ import annotations

import asyncio

import typer
from pydantic import JsonValue

from darkroom.commands.acls import acls
from darkroom.commands.tables import AsJson, Column, Wide, show_list
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.settings import Settings

COLUMNS = (
    Column("topic"),
    Column("key"),
    Column("partitions"),
    Column("writers", "written by", below=True),
    Column("readers", "read by", below=True),
    Column("problem", below=True),
)

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


@app.command("list")
@app.command("show")
def show(as_json: AsJson = False, wide: Wide = False) -> None:
    """List all topics; exit 1 if one is missing or differs from its declaration."""
    try:
        states = asyncio.run(KafkaAdmin(Settings().kafka).topic_states())
    except DependencyUnavailable as error:
        raise SystemExit(str(error)) from error
    rows: list[dict[str, JsonValue]] = [
        {
            "topic": state.name,
            "key": state.topic.key,
            "partitions": state.partitions,
            "writers": [*state.topic.writers],
            "readers": [*state.topic.readers],
            "problem": state.problem,
        }
        for state in states
    ]
    show_list(COLUMNS, rows, as_json=as_json, wide=wide, empty="No topics.")
    raise typer.Exit(1 if any(state.problem for state in states) else 0)
