"""A client generated from the OpenAPI document works against a running system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from darkroom.generate.openapi import openapi
from tests.e2e.system import PATIENCE_S, RunningSystem

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = Path(__file__).with_name("generated_client.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the package `client`, generated from the document without warnings."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(openapi()))
    made = subprocess.run(
        [
            str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--path", "openapi.json",
            "--meta", "none", "--output-path", "client", "--config", str(DOCS / "openapi-python-client.yaml"),
        ],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    output = made.stdout + made.stderr
    assert made.returncode == 0, output
    assert "WARNING" not in output and "Unable" not in output, output
    return folder


def test_every_operation_is_generated(generated: Path) -> None:
    """The generated package has a module for each operation of the document."""
    modules = {path.stem for path in (generated / "client" / "api").glob("*/*.py")} - {"__init__"}
    document = openapi()
    wanted = {operation["operationId"] for item in document["paths"].values() for operation in item.values()}
    assert modules == wanted


def test_a_generated_client_uploads_and_reads(generated: Path, system: RunningSystem, images_dir: Path) -> None:
    """It uploads an image, waits for the result by Retry-After, parses it as models, and fetches a size."""
    image = images_dir / "clip_golden" / "123_456.jpg"
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), system.url, str(image)],
        cwd=generated, env={"PYTHONPATH": str(generated)}, capture_output=True, text=True,
        timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    printed = json.loads(ran.stdout)
    assert printed["result"]["status"] == "completed"
    assert printed["result"]["metadata"]["context"] == {"album": "generated"}
    assert printed["result"]["metadata"]["tags"] == ["a", "b"]
    assert (printed["kind"], printed["bytes"] > 100) == ("image/webp", True)
