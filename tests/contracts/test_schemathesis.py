"""Schemathesis, all its checks, against a running gateway: what the document says is so.

The command that anybody may run does the same for longer: `make fuzz`.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.local.kafka import LocalKafka
from tests.support.deployment import Deployment, deployed, until

ROOT = Path(__file__).parents[2]
EXAMPLES = 4  # generated requests of each kind and operation; `make fuzz` sends many more
SEED = 1  # the same requests each time: a new one that fails is found by `make fuzz`, not in a build
PATIENCE_S = 600.0


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """A core: gateway and indexer, on a real Kafka and real folders, open to this machine."""
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("contract")) as deployment:
        deployment.start("core")
        until(lambda: answers(deployment), "the gateway answering")
        yield deployment


def answers(deployment: Deployment) -> bool:
    """Say whether the gateway answers."""
    deployment.check_alive()
    try:
        return httpx.get(address(deployment, "/health/live")).status_code == 200
    except httpx.HTTPError:
        return False


def address(deployment: Deployment, path: str) -> str:
    """Return a URL of the gateway."""
    return f"http://127.0.0.1:{deployment.port}{path}"


@pytest.mark.timeout(7200)  # of `make fuzz`; the build's own limit is PATIENCE_S
def test_every_answer_is_as_the_document_says(deployment: Deployment) -> None:
    """Requests that are valid, invalid, or in a row are answered as documented, in every phase, with every check."""
    # Asked for more: other requests each time, for as long as it takes.
    more = shlex.split(os.environ.get("DARKROOM_FUZZ", ""))
    few = ["--max-examples", str(EXAMPLES), "--seed", str(SEED), "--generation-deterministic"]
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", address(deployment, "/openapi.json"),
            "--checks", "all", *(more or few), "--no-color",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=None if more else PATIENCE_S, check=False,
    )  # fmt: skip
    deployment.check_alive()
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-12_000:]
    tested = re.search(r"([0-9]+) generated, ([0-9]+) passed", ran.stdout)
    assert tested and tested[1] == tested[2] and int(tested[1]) > 500, ran.stdout[-2000:]
