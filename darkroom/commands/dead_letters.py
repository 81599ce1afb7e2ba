"""`darkroom dead-letters`: list, show, replay and discard dead letters. A dry run without --yes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Annotated

import typer
from pydantic import JsonValue

from darkroom.commands.tables import MINUTE, AsJson, Column, Wide, show_list
from streams.errors import DependencyUnavailable
from streams.kafka.producer import open_producer
from streams.object_store.factory import open_files
from streams.retries.dead_letters import DeadLetter, DeadLetterStore, Selection
from streams.retries.retry_policy import number_header
from streams.settings import Settings
from streams.topics import GIVES_UP

COLUMNS = (
    Column("agent"),
    Column("letter"),
    Column("code"),
    Column("failed_at", "failed at", length=MINUTE),
    Column("attempts", "tries"),
    Column("handled", below=True),
    Column("image_id", "image", below=True),
    Column("message", below=True),
)

app = typer.Typer(no_args_is_help=True, help="List, show, replay and discard dead letters.")

Agent = Annotated[str, typer.Option("--agent", help=f"One of: {', '.join(GIVES_UP)}; default: all.")]
Code = Annotated[str | None, typer.Option("--code", help="Only dead letters with this error code.")]
Image = Annotated[str | None, typer.Option("--image", help="Only dead letters of this image id.")]
Since = Annotated[str | None, typer.Option("--since", help="Only dead letters since this time (RFC 3339).")]
Confirmed = Annotated[bool, typer.Option("--yes", help="Apply the changes; without it, a dry run.")]


def _agents(agent: str) -> tuple[str, ...]:
    if agent and agent not in GIVES_UP:
        raise typer.BadParameter(f"unknown agent {agent}; allowed: {', '.join(GIVES_UP)}")
    return (agent,) if agent else GIVES_UP


def _with_store(work: Callable[[DeadLetterStore], Awaitable[None]]) -> None:
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


def _print_act(letter: DeadLetter, act: str) -> None:
    print(f"{act}: {letter.agent} {letter.id} {letter.code} {letter.image_id}")


@app.command("list")
def list_(
    agent: Agent = "",
    code: Code = None,
    image: Image = None,
    since: Since = None,
    every: Annotated[bool, typer.Option("--all", help="Include replayed and discarded ones.")] = False,
    as_json: AsJson = False,
    wide: Wide = False,
) -> None:
    """List dead letters, oldest first."""
    rows: list[dict[str, JsonValue]] = []

    async def work(store: DeadLetterStore) -> None:
        for name in _agents(agent):
            letters = store.letters(name, Selection(code, image, None, since), handled=every)
            rows.extend([row_of(letter) async for letter in letters])

    _with_store(work)
    show_list(COLUMNS, rows, as_json=as_json, wide=wide, empty="No dead letters.")


def row_of(letter: DeadLetter) -> dict[str, JsonValue]:
    """Return a dead letter as a row of the list."""
    return {
        "agent": letter.agent,
        "letter": letter.id,
        "code": letter.code,
        "image_id": letter.image_id or None,
        "attempts": number_header(letter.record, "dlq.attempt"),
        "replays": letter.replays,
        "failed_at": letter.died_at,
        "message": letter.message,
        "handled": letter.handled,
    }


@app.command()
def show(
    agent: Annotated[str, typer.Argument()], letter_id: Annotated[str, typer.Argument(help="The id shown by `list`.")]
) -> None:
    """Show the headers and the body of a dead letter."""

    async def work(store: DeadLetterStore) -> None:
        async for letter in store.letters(_agents(agent)[0], Selection(letter_id=letter_id), handled=True):
            for name, value in letter.record.headers:
                print(f"{name}: {value.decode('utf-8', 'replace')}")
            print()
            print((letter.record.value or b"").decode("utf-8", "replace"))
            return
        raise SystemExit(f"{agent} has no dead letter {letter_id}. `darkroom dead-letters list --all` shows all.")

    _with_store(work)


@app.command()
def replay(
    agent: Agent = "",
    code: Code = None,
    image: Image = None,
    since: Since = None,
    letter_id: Annotated[str | None, typer.Option("--letter", help="Only the dead letter with this id.")] = None,
    per_second: Annotated[float, typer.Option(help="Most dead letters per second.", min=0.1)] = 20.0,
    yes: Confirmed = False,
) -> None:
    """Send dead letters to the retry topic of their agent."""

    async def work(store: DeadLetterStore) -> None:
        selection = Selection(code, image, letter_id, since)
        for name in _agents(agent):
            await store.replay(name, selection, dry_run=not yes, per_second=per_second, seen=_print_act)

    _with_store(work)


@app.command()
def discard(
    reason: Annotated[str, typer.Option(help="Kept in the audit record.")],
    agent: Agent = "",
    code: Code = None,
    image: Image = None,
    since: Since = None,
    letter_id: Annotated[str | None, typer.Option("--letter", help="Only the dead letter with this id.")] = None,
    yes: Confirmed = False,
) -> None:
    """Mark dead letters as discarded, with an audit record; they are never replayed."""

    async def work(store: DeadLetterStore) -> None:
        selection = Selection(code, image, letter_id, since)
        for name in _agents(agent):
            await store.discard(name, selection, reason=reason, dry_run=not yes, seen=_print_act)

    _with_store(work)
