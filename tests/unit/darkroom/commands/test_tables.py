"""Lists of the operator commands: legible on a narrow terminal, whole with --wide, and JSON for programs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pydantic import JsonValue
from rich.cells import cell_len
from typer.testing import CliRunner

from darkroom import main
from darkroom.commands import dead_letters, keys, models
from darkroom.commands.tables import Column, table_lines
from schemas.events.envelope import Record
from schemas.values import ErrorCode, new_image_id
from streams.retries.dead_letters import DeadLetter
from streams.topics import GIVES_UP

LONG = "the object store did not answer within 30 s: " + "word " * 60
LISTS = (
    ("agents", "list"),
    ("keys", "list"),
    ("dead-letters", "list"),
    ("models", "list"),
    ("topics", "list"),
    ("topics", "show"),
)


def letter(agent: str, number: int, code: str, message: str) -> DeadLetter:
    """Return a dead letter of the longest values that occur."""
    headers = {
        "ce_subject": new_image_id(),
        "dlq.error.code": code,
        "dlq.error.message": message,
        "dlq.last-failure.ts": "2026-11-29T12:50:12.123Z",
        "dlq.attempt": "12",
    }
    encoded = tuple((name, value.encode()) for name, value in headers.items())
    return DeadLetter(agent, Record("t", 23, number, None, b"{}", encoded, 0), "discarded")


def test_dead_letters_are_legible_at_80_columns() -> None:
    """No value of a dead letter is broken or cut at 80 columns, except the message between words."""
    longest = max(ErrorCode, key=len)
    letters = [letter(agent, 1_234_567, longest, LONG) for agent in GIVES_UP]
    lines = table_lines(dead_letters.COLUMNS, [dead_letters.row_of(one) for one in letters], 80)
    assert max(map(cell_len, lines)) <= 80
    for one in letters:
        (line,) = [line for line in lines if line.startswith(f"{one.agent} ")]
        for value in (one.id, longest, "2026-11-29T12:50", "12"):
            assert value in line.split()
        assert f"  image: {one.image_id}" in lines
    text = " ".join(line.strip() for line in lines)
    assert f"message: {LONG.strip()}" in text
    assert set(lines[0].split()) >= {"agent", "letter", "code", "tries"}


def test_a_table_that_fits_has_one_line_for_each_row() -> None:
    """On a wide terminal, and with --wide on any, each row is one line with all columns."""
    rows = [dead_letters.row_of(letter("ocr", 1, "decode-failed", LONG)) for _ in range(3)]
    for width in (None, 1000):
        lines = table_lines(dead_letters.COLUMNS, rows, width)
        assert len(lines) == 4
        assert all(LONG.strip() in line for line in lines[1:])
    assert len({line.index("ocr") for line in lines[1:]}) == 1


def test_columns_are_aligned_by_display_width() -> None:
    """Wide characters count twice, lists are joined, and absent values are empty."""
    rows: list[dict[str, JsonValue]] = [{"a": "日本", "b": ["x", "y"]}, {"a": "abc", "b": None}, {"b": {"k": 1}}]
    lines = table_lines([Column("a"), Column("b", "second")], rows)
    assert lines == ["a     second", "日本  x, y", "abc", "      k 1"]


def test_control_characters_are_not_printed() -> None:
    """A message with escape sequences, line breaks or markup cannot change the terminal or the table."""
    rows: list[dict[str, JsonValue]] = [{"a": "x\x1b[31m\r\ny\x07[red]\u202e"}]
    assert table_lines([Column("a")], rows)[1:] == ["x [31m y [red]"]


@pytest.mark.parametrize("command", LISTS, ids=" ".join)
def test_every_list_has_the_same_options(command: tuple[str, str]) -> None:
    """Each list command takes --json and --wide."""
    main._add_tools()
    help_ = CliRunner(env={"COLUMNS": "200"}).invoke(main.app, [*command, "--help"])
    assert help_.exit_code == 0, help_.output
    assert "--json" in help_.output
    assert "--wide" in help_.output


def test_keys_as_json_and_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """JSON has every field; the table fits a terminal of 80 columns."""
    monkeypatch.setenv("DARKROOM_FILES__DIRECTORY", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "80")
    run = CliRunner()
    assert json.loads(run.invoke(keys.app, ["list", "--json"]).stdout) == []
    for wish in (
        ["--owner", "anna", "--name", "n" * 60, "--limit", "uploads=5/second", "--days", "2"],
        ["--owner", "bert"],
    ):
        assert run.invoke(keys.app, ["create", *wish]).exit_code == 0
    anna, bert = json.loads(run.invoke(keys.app, ["list", "--json"]).stdout)
    assert (anna["owner"], anna["state"], anna["limits"]) == ("anna", "active", {"uploads": "5/second"})
    assert (bert["owner"], bert["scopes"], bert["expires_at"]) == (
        "bert",
        ["images:read", "images:write", "search"],
        None,
    )
    assert anna["expires_at"].endswith("Z")
    narrow = run.invoke(keys.app, ["list"]).stdout
    assert max(map(len, narrow.splitlines())) <= 80
    assert "scopes: images:read, images:write, search" in narrow
    wide = run.invoke(keys.app, ["list", "--wide"]).stdout.splitlines()
    assert len(wide) == 3
    assert "n" * 60 in wide[1]


def test_models_as_json() -> None:
    """JSON of the models has one object for each of the manifest."""
    found = json.loads(CliRunner().invoke(models.app, ["list", "--json"]).stdout)
    assert {"model", "stage", "state", "licence", "where", "sha256", "reason"} == set(found[0])
    assert "embedder" in {model["stage"] for model in found}
