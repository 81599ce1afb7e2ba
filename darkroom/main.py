"""The `darkroom` command."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from streams.topics import AGENTS

app = typer.Typer(
    no_args_is_help=True,
    help="An image pipeline on Kafka: every image made safe, resized, read, detected, embedded and searchable.",
    pretty_exceptions_enable=False,
)
PROCESSES = frozenset({"agent", "core", "gateway", "query", "reconciler", "router"})


def _add_tools() -> None:
    """Add the commands for people: a worker process must not carry what only they need."""
    from darkroom.commands import (  # noqa: PLC0415
        agents,
        dead_letters,
        keys,
        models,
        reconcile,
        reprocess,
        submit,
        topics,
    )

    app.add_typer(agents.app, name="agents")
    app.add_typer(keys.app, name="keys")
    app.add_typer(dead_letters.app, name="dead-letters")
    app.add_typer(models.app, name="models")
    app.add_typer(topics.app, name="topics")
    app.command("reconcile")(reconcile.reconcile)
    app.command("reprocess")(reprocess.reprocess)
    app.command("submit")(submit.submit)
    app.command("search")(submit.search)


Folder = Annotated[Path, typer.Option(help="Where data and logs are kept.", envvar="DARKROOM_FOLDER")]


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the gateway.")] = 8080,
    host: Annotated[str, typer.Option(help="Address of the gateway.")] = "127.0.0.1",
    folder: Folder = Path(".darkroom"),
    minio: Annotated[bool, typer.Option(help="Keep objects in a real MinIO instead of a folder.")] = False,
) -> None:
    """Run everything until Ctrl-C: Kafka, gateway, router, all agents. What dies is restarted."""
    from darkroom.local.system import SystemPlan  # noqa: PLC0415
    from darkroom.local.up import stay_up  # noqa: PLC0415 - starting one agent must not load what starting all needs

    raise typer.Exit(asyncio.run(stay_up(SystemPlan(folder, port=port, host=host, minio=minio))))


@app.command()
def demo(
    images: Annotated[Path | None, typer.Option(help="A folder of images of your own.")] = None,
    folder: Annotated[Path, typer.Option(help="Where data and logs are kept.")] = Path(".darkroom/demo"),
    minio: Annotated[bool, typer.Option(help="Keep objects in a real MinIO instead of a folder.")] = False,
) -> None:
    """Send real photos through the whole pipeline, show what came out, search, stop."""
    from darkroom.local.demo import run_demo  # noqa: PLC0415

    raise typer.Exit(asyncio.run(run_demo(images, folder, minio=minio)))


@app.command()
def agent(names: Annotated[list[str], typer.Argument(help=f"Of: {', '.join(AGENTS)}.")]) -> None:
    """Be an agent; several names run as supervised processes, one per agent."""
    unknown = [name for name in names if name not in AGENTS]
    if unknown:
        raise typer.BadParameter(f"there is no agent {', '.join(unknown)}; there are {', '.join(AGENTS)}")
    if len(names) == 1:
        from darkroom.processes.workers import run_agent  # noqa: PLC0415

        raise typer.Exit(run_agent(names[0]))
    from darkroom.local.up import stay_up_agents  # noqa: PLC0415

    raise typer.Exit(asyncio.run(stay_up_agents(tuple(names))))


def _process(part: str) -> None:
    if part == "reconciler":
        from darkroom.processes.reconciler import run_reconciler  # noqa: PLC0415

        raise typer.Exit(run_reconciler())
    if part == "router":
        from darkroom.processes.workers import run_router  # noqa: PLC0415

        raise typer.Exit(run_router())
    if part == "ingest":
        from darkroom.processes.ingest import run_ingest  # noqa: PLC0415

        raise typer.Exit(run_ingest())
    from darkroom.processes.gateways import run_gateway  # noqa: PLC0415

    raise typer.Exit(run_gateway(part))


@app.command()
def gateway() -> None:
    """Be the ingest gateway: images in."""
    _process("ingest")


@app.command()
def query() -> None:
    """Be the query gateway: images out."""
    _process("query")


@app.command()
def core() -> None:
    """Be ingest, query and, with the read model in process, the indexer: one process of the embedded system."""
    _process("core")


@app.command()
def router() -> None:
    """Be the router: move delayed events back to their agents when they are due."""
    _process("router")


@app.command()
def reconciler() -> None:
    """Be the reconciler: find images that should have ended, lead them on, and tidy up after deletions."""
    _process("reconciler")


def main() -> None:
    """Run the command; a broken pipe (`| head`) is not an error."""
    if sys.argv[1:2] == [] or sys.argv[1] not in PROCESSES:
        _add_tools()
    try:
        app()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
