"""`darkroom agents`: which agents work, which are paused and why; pause and resume them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.object_store.factory import open_files
from streams.operations.agent_pauses import Control
from streams.settings import Settings
from streams.topics import AGENTS, PIPELINE, retry_topic

app = typer.Typer(no_args_is_help=True, help="The agents: who works, who is paused and why.")

Name = Annotated[str, typer.Argument(help=f"Of: {', '.join(AGENTS)}.")]


def _known(agent: str) -> str:
    if agent not in AGENTS:
        raise typer.BadParameter(f"there is no agent {agent}; there are {', '.join(AGENTS)}")
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
def list_() -> None:
    """Show each agent's workers, lag, and why it is paused, if it is."""

    async def work(control: Control, settings: Settings) -> None:
        admin = KafkaAdmin(settings.kafka)
        members = await admin.members()
        paused = {mark.agent: mark for mark in await control.all()}
        table = Table("agent", "workers", "lag", "paused")
        for agent in AGENTS:
            topics = [topic.name for topic in PIPELINE if agent in topic.readers]
            lag = await admin.lag(agent, [*topics, retry_topic(agent)])
            mark = paused.get(agent)
            reason = f"{mark.reason} (by {mark.by}, {mark.at})" if mark else ""
            table.add_row(agent, str(members.get(agent, 0)), str(lag), reason)
        Console().print(table)

    _with_control(work)


@app.command()
def pause(agent: Name, reason: Annotated[str, typer.Option(help="Why; shown wherever it is seen.")]) -> None:
    """Let an agent finish what it works on and take nothing more. Its events wait in Kafka."""
    name = _known(agent)
    _with_control(lambda control, _settings: control.pause(name, reason, by="operator"))
    print(f"{agent} is paused")


@app.command()
def resume(agent: Name) -> None:
    """Let an agent consume again."""
    name = _known(agent)

    async def work(control: Control, _settings: Settings) -> None:
        print(f"{name} consumes again" if await control.resume(name) else f"{name} was not paused")

    _with_control(work)
