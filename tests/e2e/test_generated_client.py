"""A client that others generate from our document works against the running system."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from darkroom.generate.openapi import openapi
from tests.e2e.whole import PATIENCE_S, Whole

DOCS = Path(__file__).parents[2] / "docs"
SCRIPT = Path(__file__).with_name("generated_client.py")


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `client`, generated from the document; the generator had nothing to complain of."""
    folder = tmp_path_factory.mktemp("generated")
    (folder / "openapi.json").write_text(json.dumps(openapi()))
    made = subprocess.run(
        [
            str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--path", "openapi.json",
            "--meta", "none", "--output-path", "client", "--config", str(DOCS / "openapi-python-client.yaml"),
        ],
        cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    said = made.stdout + made.stderr
    assert made.returncode == 0, said
    assert "WARNING" not in said and "Unable" not in said, said
    return folder


def test_every_operation_is_generated(generated: Path) -> None:
    """The generated package has a module for each operation of the document."""
    modules = {path.stem for path in (generated / "client" / "api").glob("*/*.py")} - {"__init__"}
    document = openapi()
    wanted = {operation["operationId"] for item in document["paths"].values() for operation in item.values()}
    assert modules == wanted


def test_a_generated_client_uploads_and_reads(generated: Path, whole: Whole, images_dir: Path) -> None:
    """It uploads an image, waits for the result as the answers say, reads it as models, and fetches a size."""
    image = images_dir / "clip_golden" / "123_456.jpg"
    ran = subprocess.run(
        [sys.executable, str(SCRIPT), whole.url, str(image)],
        cwd=generated, env={"PYTHONPATH": str(generated)}, capture_output=True, text=True,
        timeout=2 * PATIENCE_S, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr[-3000:]
    said = json.loads(ran.stdout)
    assert said["result"]["status"] == "completed"
    assert said["result"]["metadata"]["context"] == {"album": "generated"}
    assert said["result"]["metadata"]["tags"] == ["a", "b"]
    assert (said["kind"], said["bytes"] > 100) == ("image/webp", True)
