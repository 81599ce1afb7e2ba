"""`darkroom keys`: creates, lists and revokes API keys in the object store, without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.table import Column, Table

from gateway.access.api_keys import ApiKey, ApiKeys, TooManyKeys
from schemas.http.keys import NewKey, Scope
from streams.errors import DependencyUnavailable, NotReady
from streams.object_store.factory import open_files
from streams.settings import Settings

app = typer.Typer(no_args_is_help=True, help="Create, list and revoke API keys.")
T = TypeVar("T")
_DEFAULT_SCOPES = [Scope.WRITE, Scope.READ, Scope.SEARCH]


def _with_keys(work: Callable[[ApiKeys], Awaitable[T]]) -> T:
    async def run() -> T:
        async with open_files(Settings().files) as files:
            return await work(ApiKeys(files))

    try:
        return asyncio.run(run())
    except (DependencyUnavailable, NotReady, TooManyKeys) as error:
        raise SystemExit(str(error)) from error


@app.command()
def create(
    owner: Annotated[str, typer.Option(help="The owner whose images the key gives access to.")],
    scope: Annotated[list[Scope], typer.Option(help="A scope of the key; repeatable.")] = _DEFAULT_SCOPES,
    name: Annotated[str, typer.Option(help="A label for people.")] = "",
    days: Annotated[float | None, typer.Option(help="Days until it expires; default: never.", min=0.01)] = None,
    limit: Annotated[
        list[str] | None, typer.Option(help="A rate limit of the key, such as uploads=1000/hour; repeatable.")
    ] = None,
) -> None:
    """Create a key and print its secret, which is never shown again. Gateways accept it at once."""
    expires = datetime.now(UTC).replace(microsecond=0) + timedelta(days=days) if days is not None else None
    limits = dict(text.partition("=")[::2] for text in limit or ())
    try:
        asked = NewKey(owner=owner, scopes=frozenset(scope), name=name, expires_at=expires, limits=limits)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise typer.BadParameter("; ".join(problems)) from error
    key, secret = _with_keys(lambda keys: keys.create(asked))
    print(secret)
    Console(stderr=True).print(
        f"Key {key.id} of {key.owner}. The secret is shown only once. Restart gateways that were started without "
        "authentication: they accept anonymous requests until then."
    )


@app.command("list")
def list_() -> None:
    """List all keys, without secrets."""
    table = Table(Column("id", no_wrap=True), "owner", "name", "scopes", "state", "created", "expires", "limits")
    found = _with_keys(lambda keys: keys.all())
    for key in sorted((key for _, key in found.values()), key=lambda key: (key.created_at, key.id)):
        table.add_row(*_cells(key))
    Console().print(table if table.row_count else "No keys.")


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id shown by `list`.")]) -> None:
    """Revoke a key permanently; gateways reject it within seconds."""
    key = _with_keys(lambda keys: keys.revoke(key_id))
    if key is None:
        raise SystemExit(f"Unknown key {key_id}. `darkroom keys list` shows all keys.")
    print(f"{key.id} of {key.owner} is revoked")


def _cells(key: ApiKey) -> tuple[str, ...]:
    scopes, limits = ", ".join(sorted(key.scopes)), ", ".join(f"{kind} {rate}" for kind, rate in key.limits.items())
    expires = f"{key.expires_at:%Y-%m-%d %H:%M}" if key.expires_at else "never"
    return key.id, key.owner, key.name, scopes, key.state.value, f"{key.created_at:%Y-%m-%d %H:%M}", expires, limits
