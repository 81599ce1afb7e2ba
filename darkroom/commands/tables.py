"""Terminal output: lists of operator commands as a table or JSON; progress per stage, results, search results."""

from __future__ import annotations

import json
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

import typer
from pydantic import JsonValue
from rich.box import SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.table import Table

from schemas.http.jobs import JobResult, JobStatus
from schemas.http.search import SearchAnswer
from schemas.values import REQUIRED_STAGES, StageState

TEXT_SHOWN = 40
MINUTE = len("2026-11-29T12:50")  # characters of a time up to the minute
_ENDED = {StageState.DONE, StageState.SKIPPED, StageState.REJECTED, StageState.FAILED}


AsJson = Annotated[bool, typer.Option("--json", help="Print a JSON list instead, for programs.")]
Wide = Annotated[bool, typer.Option("--wide", help="One line for each row, also if it is wider than the terminal.")]


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a list: its key in the rows, and its title."""

    key: str
    title: str = ""  # empty: the key
    below: bool = False  # goes below the row if the terminal is too narrow for all columns
    length: int | None = None  # characters shown, such as those of a time up to the minute

    @property
    def heading(self) -> str:
        """The title, or the key."""
        return self.title or self.key


def show_list(
    columns: Sequence[Column], rows: Sequence[Mapping[str, JsonValue]], *, as_json: bool, wide: bool, empty: str
) -> None:
    """Print rows as a table, or with all their keys as JSON; `empty` is printed instead of a table without rows."""
    if as_json:
        print(json.dumps([dict(row) for row in rows], ensure_ascii=False, indent=2))
    else:
        print("\n".join(table_lines(columns, rows, None if wide else Console().width)) if rows else empty)


def table_lines(
    columns: Sequence[Column], rows: Sequence[Mapping[str, JsonValue]], width: int | None = None
) -> list[str]:
    """Return a table of at most `width` characters per line, as far as the columns beside each other allow.

    If not all columns fit, those that are `below` follow each row, indented and wrapped, without empty values.
    """
    cells = [{column.key: _cell(row.get(column.key))[: column.length] for column in columns} for row in rows]
    lines = _aligned(columns, cells)
    if width is None or max(map(cell_len, lines)) <= width:
        return lines
    beside = [column for column in columns if not column.below]
    heading, *lines = _aligned(beside, cells)
    found = [heading]
    for line, row in zip(lines, cells, strict=True):
        found.append(line)
        for column in columns:
            if column.below and row[column.key]:
                text = f"{column.heading}: {row[column.key]}"
                found += textwrap.wrap(text, width, initial_indent="  ", subsequent_indent="    ")
    return found


def _aligned(columns: Sequence[Column], cells: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the heading and the rows, each in one line."""
    table = [[column.heading for column in columns], *([row[column.key] for column in columns] for row in cells)]
    widths = [max(map(cell_len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(set_cell_size(text, width) for text, width in zip(row, widths, strict=True)).rstrip() for row in table
    ]


def _cell(value: JsonValue) -> str:
    """Return a value as printable text in one line: control characters could change the terminal."""
    if isinstance(value, list):
        return ", ".join(map(_cell, value))
    if isinstance(value, dict):
        return ", ".join(f"{key} {_cell(item)}" for key, item in value.items())
    text = "" if value is None else str(value)
    return " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())


@dataclass(frozen=True, slots=True)
class Shown:
    """One row of the results table."""

    name: str
    result: JobResult
    seconds: float


def stage_progress(statuses: Iterable[JobStatus], total: int) -> str:
    """Return one line with the number of images past each stage."""
    counts: Counter[str] = Counter()
    for status in statuses:
        for stage, view in status.stages.items():
            counts[stage] += view.state in _ENDED
    return "  ".join(f"{stage} {counts[stage]}/{total}" for stage in REQUIRED_STAGES if stage in counts)


def results_table(shown: Sequence[Shown]) -> Table:
    """Return the results as a table."""
    table = Table("image", "state", "variants", "objects", "text", "skipped", "seconds", box=SIMPLE_HEAD)
    for row in shown:
        result = row.result
        sizes = result.metadata.variants.values()
        largest = max(sizes, key=lambda size: size.width, default=None)
        variants = f"{len(sizes)}, up to {largest.width}×{largest.height}" if largest else ""
        labels = Counter(found.label for found in result.objects or ())
        objects = ", ".join(f"{count} {label}" if count > 1 else label for label, count in labels.most_common())
        text = " ".join((result.text.content if result.text else "").split())
        skipped = ", ".join(name for name, stage in result.stages.items() if stage.state is StageState.SKIPPED)
        cut = text if len(text) <= TEXT_SHOWN else text[: TEXT_SHOWN - 1] + "…"
        table.add_row(row.name, result.status.value, variants, objects, cut, skipped, f"{row.seconds:.1f}")
    return table


def reason_lines(shown: Sequence[Shown]) -> list[str]:
    """Return one line per rejected or failed image."""
    return [
        f"{row.name}: {row.result.error.code}: {row.result.error.message}"
        for row in shown
        if row.result.error is not None
    ]


def answer_lines(answer: SearchAnswer, names: Mapping[str, str]) -> list[str]:
    """Return search results as lines; an image without a name is shown by its id."""
    lines = [f"“{answer.query}”"]
    lines += [
        f"   {item.score:.2f}  {names.get(item.image_id, item.image_id)}  by {', '.join(item.matched)}"
        for item in answer.items[:5]
    ]
    return lines if answer.items else [*lines, "   nothing found"]
