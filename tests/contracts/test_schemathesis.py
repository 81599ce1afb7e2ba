"""Schemathesis with all its checks against a running gateway: responses conform to the OpenAPI document.

`make fuzz` runs the same for longer.
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

pytestmark = pytest.mark.lengthy

ROOT = Path(__file__).parents[2]
EXAMPLES = 4  # generated requests of each kind and operation; `make fuzz` sends many more
SEED = 1  # equal requests in every build; `make fuzz` generates new ones
TIMEOUT_S = 600.0


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Gateway and indexer on a real Kafka and real folders, open to this machine."""
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("contract")) as deployment:
        deployment.start("core")
        until(lambda: answers(deployment), "the gateway answering")
        yield deployment


def answers(deployment: Deployment) -> bool:
    """Return whether the gateway answers."""
    deployment.check_alive()
    try:
        return httpx.get(address(deployment, "/health/live")).status_code == 200
    except httpx.HTTPError:
        return False


def address(deployment: Deployment, path: str) -> str:
    """Return a URL of the gateway."""
    return f"http://127.0.0.1:{deployment.port}{path}"


@pytest.mark.timeout(7200)  # of `make fuzz`; the build's own limit is TIMEOUT_S
def test_every_response_conforms_to_the_document(deployment: Deployment) -> None:
    """Valid, invalid and stateful requests get documented responses, in every phase, with every check."""
    # `make fuzz`: new requests each time, without time limit.
    more = shlex.split(os.environ.get("DARKROOM_FUZZ", ""))
    few = ["--max-examples", str(EXAMPLES), "--seed", str(SEED), "--generation-deterministic"]
    ran = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")), "run", address(deployment, "/openapi.json"),
            "--checks", "all", *(more or few), "--no-color",
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=None if more else TIMEOUT_S, check=False,
    )  # fmt: skip
    deployment.check_alive()
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-12_000:]
    tested = re.search(r"([0-9]+) generated, ([0-9]+) passed", ran.stdout)
    assert tested and tested[1] == tested[2] and int(tested[1]) > 500, ran.stdout[-2000:]
