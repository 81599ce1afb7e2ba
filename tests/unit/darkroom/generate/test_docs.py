"""The generated reference matches the code, on every machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

from darkroom.generate import docs
from schemas.values import ErrorCode
from streams.settings import Settings
from streams.telemetry.metrics import ADVICE
from streams.topics import AGENTS, all_topics
from tests.support.permissions import PERMISSIONS

ROOT = Path(__file__).parents[4]


def test_the_reference_has_not_drifted() -> None:
    """Every generated file under docs is up to date; else run `python -m darkroom.generate.docs`."""
    assert docs.drifted(ROOT / "docs") == []


def test_check_names_what_has_drifted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The check fails and names a missing, a changed and a left-over file; a write repairs them."""
    assert docs.main(["--root", str(tmp_path)]) == 0
    assert docs.main(["--root", str(tmp_path), "--check"]) == 0
    (tmp_path / "settings.md").unlink()
    (tmp_path / "errors.md").write_text("changed")
    (tmp_path / "events" / "darkroom.image.former.v1.schema.json").write_text("{}")
    capsys.readouterr()
    assert docs.main(["--root", str(tmp_path), "--check"]) == 1
    output = capsys.readouterr().err.splitlines()
    assert [line.split(" ")[0] for line in output] == [
        "docs/errors.md",
        "docs/events/darkroom.image.former.v1.schema.json",
        "docs/settings.md",
    ]
    assert docs.main(["--root", str(tmp_path)]) == 0
    assert docs.main(["--root", str(tmp_path), "--check"]) == 0


def test_the_reference_is_the_same_on_every_machine(tmp_path: Path) -> None:
    """Another home, hash seed, time zone and set of settings give the same files, without paths of the machine."""
    elsewhere = {
        "PATH": os.environ["PATH"], "HOME": str(tmp_path / "home"), "TZ": "Asia/Tokyo", "LC_ALL": "C",
        "PYTHONHASHSEED": "7", "DARKROOM_KAFKA__PREFIX": "other.", "DARKROOM_FETCHER__MAX_BYTES": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "darkroom.generate.docs", "--root", str(tmp_path / "docs")]
    subprocess.run(command, check=True, env=elsewhere, cwd=ROOT, capture_output=True)
    for name, text in docs.reference().items():
        assert (tmp_path / "docs" / name).read_text() == text, name
        assert str(Path.home()) + "/" not in text
        assert str(ROOT) not in text


def test_event_schemas_are_json_schemas() -> None:
    """Each event's schema is valid under 2020-12 and named after its type."""
    for kind in docs.event_types():
        schema = docs.event_schema(kind)
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:darkroom:event:{kind.type}"


def test_asyncapi_references_resolve() -> None:
    """Every reference of the AsyncAPI document resolves, inside it or beside it."""
    files = docs.reference()
    document = json.loads(files["asyncapi.json"])

    def references(node: object) -> list[str]:
        if isinstance(node, dict):
            own = [node["$ref"]] if "$ref" in node else []
            return own + [ref for part in node.values() for ref in references(part)]
        return [ref for part in node for ref in references(part)] if isinstance(node, list) else []

    found = references(document)
    assert found
    for reference in found:
        if reference.startswith("./"):
            assert reference.removeprefix("./") in files
            continue
        node = document
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_asyncapi_names_every_topic_and_agent() -> None:
    """Each topic is a channel with its Kafka settings, and each agent receives its topics in its own group."""
    document = json.loads(docs.reference()["asyncapi.json"])
    assert set(document["channels"]) == {topic.name for topic in all_topics()}
    for topic in all_topics():
        kafka = document["channels"][topic.name]["bindings"]["kafka"]
        assert kafka["topic"] == f"darkroom.{topic.name}"
        assert kafka["topicConfiguration"]["retention.ms"] == topic.retention.total_seconds() * 1000
        for agent in AGENTS:
            operation = document["operations"].get(f"{agent}.receives.{topic.name}")
            assert (operation is not None) == (agent in topic.readers)
            if operation:
                assert operation["bindings"]["kafka"]["groupId"]["enum"] == [f"darkroom.{agent}"]


def test_every_setting_metric_and_code_is_documented() -> None:
    """The pages have every setting with a meaning, every metric with advice, every code with an anchor."""
    files = docs.reference()
    for group, field in Settings.model_fields.items():
        assert f"## {group}\n" in files["settings.md"], field
    rows = [line.split(" | ") for line in files["settings.md"].splitlines() if line.startswith("| `")]
    assert all(row[0].startswith("| `DARKROOM_") and len(row) == 4 and row[3].strip(" |") for row in rows)
    assert len({row[0] for row in rows}) == len(rows)
    for advice in ADVICE:
        assert advice.name in files["metrics.md"]
    for code in ErrorCode:
        assert f'<a id="{code}"></a>' in files["errors.md"]
    anchors = files["errors.md"].count("<a id=")
    assert anchors == len({part.split('"')[0] for part in files["errors.md"].split('<a id="')[1:]})


def test_the_permissions_page_lists_every_endpoint() -> None:
    """Each expected endpoint is one row, with its scope and a summary."""
    rows = [line.strip("| ").split(" | ") for line in docs.permissions_page().splitlines() if line.startswith("| ")]
    found = {(method, path.strip("`")): scope for method, path, scope, _ in rows[2:]}
    assert found == {row: "public" if scope is None else f"`{scope}`" for row, scope in PERMISSIONS.items()}
    assert all(summary for *_, summary in rows)
