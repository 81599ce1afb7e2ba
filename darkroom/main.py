"""The `darkroom` command."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from streams.errors import NotReady
from streams.topics import AGENTS

app = typer.Typer(
    no_args_is_help=True,
    help="An image pipeline on Kafka: sanitizes, resizes, reads, detects, embeds and indexes images.",
    pretty_exceptions_enable=False,
)
PROCESSES = frozenset({"agent", "core", "gateway", "query", "reconciler", "router"})


def _add_tools() -> None:
    """Add the operator commands, whose imports a worker process must not load."""
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


Folder = Annotated[Path, typer.Option(help="Folder of data and logs.", envvar="DARKROOM_FOLDER")]


@app.command()
def up(
    port: Annotated[int, typer.Option(help="Port of the gateway.")] = 8080,
    host: Annotated[str, typer.Option(help="Address of the gateway.")] = "127.0.0.1",
    folder: Folder = Path(".darkroom"),
    minio: Annotated[bool, typer.Option(help="Store objects in MinIO instead of a folder.")] = False,
) -> None:
    """Run Kafka, gateway, router and all agents until Ctrl-C. Processes that exit are restarted."""
    from darkroom.local.system import SystemPlan  # noqa: PLC0415
    from darkroom.local.up import stay_up  # noqa: PLC0415 - a single agent must not load the supervisor

    raise typer.Exit(asyncio.run(stay_up(SystemPlan(folder, port=port, host=host, minio=minio))))


@app.command()
def demo(
    images: Annotated[
        Path | None, typer.Option(help="A folder of images to send instead of the built-in ones.")
    ] = None,
    folder: Annotated[Path, typer.Option(help="Folder of data and logs; emptied first.")] = Path(".darkroom/demo"),
    minio: Annotated[bool, typer.Option(help="Store objects in MinIO instead of a folder.")] = False,
) -> None:
    """Start the system, send photos through it, show the results, search, and stop."""
    from darkroom.local.demo import run_demo  # noqa: PLC0415

    raise typer.Exit(asyncio.run(run_demo(images, folder, minio=minio)))


@app.command()
def agent(names: Annotated[list[str], typer.Argument(help=f"One or more of: {', '.join(AGENTS)}.")]) -> None:
    """Run an agent; several names run as supervised processes, one per agent."""
    unknown = [name for name in names if name not in AGENTS]
    if unknown:
        raise typer.BadParameter(f"unknown agent {', '.join(unknown)}; allowed: {', '.join(AGENTS)}")
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
    """Run the ingest gateway: uploads."""
    _process("ingest")


@app.command()
def query() -> None:
    """Run the query gateway: results, images and search."""
    _process("query")


@app.command()
def core() -> None:
    """Run ingest and query in one process; with an embedded read model, the indexer and reconciler too."""
    _process("core")


@app.command()
def router() -> None:
    """Run the router: delayed events go back to their agents when they are due, bulk uploads to the pipeline."""
    _process("router")


@app.command()
def reconciler() -> None:
    """Run the reconciler: resend lost events of unfinished images, and remove the objects of deleted ones."""
    _process("reconciler")


def main() -> None:
    """Run the command line. Invalid settings end a command with a sentence; a broken pipe (`| head`) is no error."""
    if sys.argv[1:2] == [] or sys.argv[1] not in PROCESSES:
        _add_tools()
    try:
        app()
    except NotReady as error:
        raise SystemExit(str(error)) from error
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
