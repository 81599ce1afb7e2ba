"""`darkroom agents`: list, pause and resume agents."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from pydantic import JsonValue

from darkroom.commands.tables import AsJson, Column, Wide, show_list
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.object_store.factory import open_files
from streams.operations.agent_pauses import Control
from streams.settings import Settings
from streams.topics import AGENTS, PIPELINE, retry_topic

COLUMNS = (Column("agent"), Column("workers"), Column("lag"), Column("paused", below=True))

app = typer.Typer(no_args_is_help=True, help="List, pause and resume agents.")

Name = Annotated[str, typer.Argument(help=f"One of: {', '.join(AGENTS)}.")]


def _known(agent: str) -> str:
    if agent not in AGENTS:
        raise typer.BadParameter(f"unknown agent {agent}; allowed: {', '.join(AGENTS)}")
    return agent


def _with_control(work: Callable[[Control, Settings], Awaitable[None]]) -> None:
    async def run() -> None:
        settings = Settings()
        async with open_files(settings.files) as files:
            await work(Control(files), settings)

    try:
        asyncio.run(run())
    except DependencyUnavailable as error:
        raise SystemExit(str(error)) from error


@app.command("list")
def list_(as_json: AsJson = False, wide: Wide = False) -> None:
    """Show the workers and the lag of each agent, and why it is paused."""
    rows: list[dict[str, JsonValue]] = []

    async def work(control: Control, settings: Settings) -> None:
        admin = KafkaAdmin(settings.kafka)
        members = await admin.members()
        paused = {mark.agent: mark for mark in await control.all()}
        for agent in AGENTS:
            topics = [topic.name for topic in PIPELINE if agent in topic.readers]
            lag = await admin.lag(agent, [*topics, retry_topic(agent)])
            mark = paused.get(agent)
            row: dict[str, JsonValue] = {"agent": agent, "workers": members.get(agent, 0), "lag": lag, "paused": None}
            if mark is not None:
                row["paused"] = f"{mark.reason} (by {mark.by}, {mark.at})"
                row |= {"reason": mark.reason, "by": mark.by, "at": mark.at}
            rows.append(row)

    _with_control(work)
    show_list(COLUMNS, rows, as_json=as_json, wide=wide, empty="No agents.")


@app.command()
def pause(agent: Name, reason: Annotated[str, typer.Option(help="Shown by `list` and in the health report.")]) -> None:
    """Pause an agent: it finishes the events in flight and consumes no more. New events wait in Kafka."""
    name = _known(agent)
    _with_control(lambda control, _settings: control.pause(name, reason, by="operator"))
    print(f"{agent} is paused")


@app.command()
def resume(agent: Name) -> None:
    """Resume a paused agent."""
    name = _known(agent)

    async def work(control: Control, _settings: Settings) -> None:
        print(f"{name} consumes again" if await control.resume(name) else f"{name} was not paused")

    _with_control(work)
