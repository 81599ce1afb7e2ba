"""`darkroom dead-letters`: what was given up on, why, and what to do with it. Dry run unless told otherwise."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from streams.errors import DependencyUnavailable
from streams.kafka.producer import open_producer
from streams.object_store.factory import open_files
from streams.retries.dead_letters import DeadLetter, DeadLetterStore, Selection
from streams.settings import Settings
from streams.topics import GIVES_UP

app = typer.Typer(no_args_is_help=True, help="Events that were given up on.")

Agent = Annotated[str, typer.Option("--agent", help=f"Of: {', '.join(GIVES_UP)}; empty means all.")]
Code = Annotated[str | None, typer.Option("--code", help="Only with this error code.")]
Image = Annotated[str | None, typer.Option("--image", help="Only of this image id.")]
Since = Annotated[str | None, typer.Option("--since", help="Only that died since (RFC 3339).")]
Really = Annotated[bool, typer.Option("--yes", help="Do it; without this, only say what would be done.")]


def _agents(agent: str) -> tuple[str, ...]:
    if agent and agent not in GIVES_UP:
        raise typer.BadParameter(f"there is no agent {agent}; there are {', '.join(GIVES_UP)}")
    return (agent,) if agent else GIVES_UP


def _with_office(work: Callable[[DeadLetterStore], Awaitable[None]]) -> None:
    async def run() -> None:
        settings = Settings()
        async with AsyncExitStack() as stack:
            files = await stack.enter_async_context(open_files(settings.files))
            producer = await stack.enter_async_context(open_producer(settings.kafka, source="darkroom/dead-letters"))
            await work(DeadLetterStore(settings.kafka, files, producer))

    try:
        asyncio.run(run())
    except DependencyUnavailable as error:
        raise SystemExit(str(error)) from error


def _said(letter: DeadLetter, act: str) -> None:
    print(f"{act}: {letter.agent} {letter.id} {letter.code} {letter.image_id}")


@app.command("list")
def list_(
    agent: Agent = "",
    code: Code = None,
    image: Image = None,
    since: Since = None,
    every: Annotated[bool, typer.Option("--all", help="Those already dealt with too.")] = False,
) -> None:
    """List dead letters, oldest first."""
    table = Table("agent", "letter", "code", "image", "attempts", "died at", "message", "dealt with")

    async def work(office: DeadLetterStore) -> None:
        for name in _agents(agent):
            async for letter in office.letters(name, Selection(code, image, None, since), handled=every):
                attempts = letter.record.header("dlq.attempt") or ""
                about = (letter.message[:80], letter.handled or "")
                table.add_row(name, letter.id, letter.code, letter.image_id, attempts, letter.died_at, *about)

    _with_office(work)
    Console().print(table if table.row_count else "No dead letters.")


@app.command()
def show(agent: Annotated[str, typer.Argument()], letter_id: Annotated[str, typer.Argument(help="As listed.")]) -> None:
    """Show one dead letter whole: headers, reason, stack, body."""

    async def work(office: DeadLetterStore) -> None:
        async for letter in office.letters(_agents(agent)[0], Selection(letter_id=letter_id), handled=True):
            for name, value in letter.record.headers:
                print(f"{name}: {value.decode('utf-8', 'replace')}")
            print()
            print((letter.record.value or b"").decode("utf-8", "replace"))
            return
        raise SystemExit(f"{agent} has no letter {letter_id}")

    _with_office(work)


@app.command()
def replay(
    agent: Agent = "",
    code: Code = None,
    image: Image = None,
    since: Since = None,
    letter_id: Annotated[str | None, typer.Option("--letter", help="Only this one.")] = None,
    per_second: Annotated[float, typer.Option(help="Letters a second.", min=0.1)] = 20.0,
    yes: Really = False,
) -> None:
    """Give dead letters another life in their agent's retry topic."""

    async def work(office: DeadLetterStore) -> None:
        selection = Selection(code, image, letter_id, since)
        for name in _agents(agent):
            await office.replay(name, selection, dry_run=not yes, per_second=per_second, seen=_said)

    _with_office(work)


@app.command()
def discard(
    reason: Annotated[str, typer.Option(help="Why; kept with the record.")],
    agent: Agent = "",
    code: Code = None,
    image: Image = None,
    since: Since = None,
    letter_id: Annotated[str | None, typer.Option("--letter", help="Only this one.")] = None,
    yes: Really = False,
) -> None:
    """Set dead letters aside for good, leaving an audit record."""

    async def work(office: DeadLetterStore) -> None:
        selection = Selection(code, image, letter_id, since)
        for name in _agents(agent):
            await office.discard(name, selection, reason=reason, dry_run=not yes, seen=_said)

    _with_office(work)
