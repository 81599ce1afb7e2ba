"""`darkroom keys`: creates, lists and revokes API keys in the object store, without a gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Annotated, TypeVar

import typer
from pydantic import JsonValue, ValidationError
from rich.console import Console

from darkroom.commands.tables import MINUTE, AsJson, Column, Wide, show_list
from gateway.access.api_keys import ApiKey, ApiKeys, TooManyKeys
from schemas.http.keys import NewKey, Scope
from streams.errors import DependencyUnavailable, NotReady
from streams.object_store.factory import open_files
from streams.settings import Settings

COLUMNS = (
    Column("id"),
    Column("owner"),
    Column("state"),
    Column("expires_at", "expires", length=MINUTE),
    Column("name", below=True),
    Column("scopes", below=True),
    Column("created_at", "created", below=True, length=MINUTE),
    Column("limits", below=True),
)

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
def list_(as_json: AsJson = False, wide: Wide = False) -> None:
    """List all keys, without secrets."""
    found = _with_keys(lambda keys: keys.all())
    known = sorted((key for _, key in found.values()), key=lambda key: (key.created_at, key.owner, key.id))
    show_list(COLUMNS, [_row(key) for key in known], as_json=as_json, wide=wide, empty="No keys.")


@app.command()
def revoke(key_id: Annotated[str, typer.Argument(help="The id shown by `list`.")]) -> None:
    """Revoke a key permanently; gateways reject it within seconds."""
    key = _with_keys(lambda keys: keys.revoke(key_id))
    if key is None:
        raise SystemExit(f"Unknown key {key_id}. `darkroom keys list` shows all keys.")
    print(f"{key.id} of {key.owner} is revoked")


def _row(key: ApiKey) -> dict[str, JsonValue]:
    return {
        "id": key.id,
        "owner": key.owner,
        "name": key.name,
        "scopes": [*sorted(key.scopes)],
        "state": key.state.value,
        "created_at": _time(key.created_at),
        "expires_at": _time(key.expires_at) if key.expires_at else None,
        "limits": {**key.limits},
    }


def _time(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
