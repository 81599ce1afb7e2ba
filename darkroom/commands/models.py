"""`darkroom models`: lists, verifies and downloads model weights."""

from __future__ import annotations

from typing import Annotated

import typer
from pydantic import JsonValue
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn

from agents.models.weights import ModelState, ModelStatus, fetch, status
from darkroom.commands.tables import AsJson, Column, Wide, show_list
from streams.settings import Settings

COLUMNS = (
    Column("model"),
    Column("stage"),
    Column("state"),
    Column("licence"),
    Column("where", below=True),
    Column("sha256", below=True),
    Column("reason", below=True),
)

app = typer.Typer(no_args_is_help=True, help="List, verify and download model weights.")


def _show(found: list[ModelStatus], *, as_json: bool = False, wide: bool = False) -> None:
    rows: list[dict[str, JsonValue]] = [
        {
            "model": model.name,
            "stage": model.stage,
            "state": model.state.value,
            "licence": model.licence,
            "where": str(model.where) if model.where else None,
            "sha256": model.sha256,
            "reason": model.reason,
        }
        for model in found
    ]
    show_list(COLUMNS, rows, as_json=as_json, wide=wide, empty="No models.")


@app.command("list")
def list_(as_json: AsJson = False, wide: Wide = False) -> None:
    """List the models of the manifest and their state."""
    _show(status(Settings().models), as_json=as_json, wide=wide)


@app.command()
def verify() -> None:
    """Verify the hash of every file; exit 1 if one is missing or differs from the manifest."""
    found = status(Settings().models)
    _show(found)
    raise typer.Exit(0 if all(model.state is ModelState.AVAILABLE for model in found) else 1)


@app.command("fetch")
def fetch_(names: Annotated[list[str] | None, typer.Argument(help="Models to download; default: all.")] = None) -> None:
    """Download missing models from their official source and verify them."""
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bars: dict[str, int] = {}

        def moved(name: str, done: int, total: int | None) -> None:
            if name not in bars:
                bars[name] = progress.add_task(name, total=total)
            progress.update(bars[name], completed=done, total=total)  # type: ignore[arg-type]

        try:
            found = fetch(Settings().models, names or (), progress=moved)
        except KeyError as error:
            raise SystemExit(f"Unknown model {error}. `darkroom models list` shows all models.") from error
    _show(found)
    raise typer.Exit(0 if all(model.state is ModelState.AVAILABLE for model in found) else 1)
