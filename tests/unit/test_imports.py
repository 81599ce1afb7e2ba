"""What each process imports: a gateway loads no stream worker, no read model and no model library.

Each case runs in a new interpreter, since the test process has loaded nearly everything.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PRINT_LOADED = "import sys; sys.stderr.write('loaded ' + ' '.join(sys.modules))"
HEAVY = frozenset({"qdrant_client", "faust", "torch"})

STARTED_GATEWAY = """
import sys
import darkroom.processes.ingest as ingest

async def serve_nothing(app, environment):
    assert app.title == "Darkroom ingest"

ingest.serve_until_signal = serve_nothing
sys.argv = ["darkroom", "gateway"]
from darkroom.main import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""
"""The gateway up to the moment it would listen; it starts also while Kafka is unavailable."""

HELP = """
import sys
sys.argv = ["darkroom", "--help"]
from darkroom.main import main
try:
    main()
except SystemExit as exit:
    assert not exit.code, exit.code
"""


def loaded(code: str, **settings: str) -> set[str]:
    """Return the modules that a new interpreter has loaded after it has run the code."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("DARKROOM_")}
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\n{PRINT_LOADED}"],
        cwd=ROOT,
        env={**environment, **settings},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return set(done.stderr.rpartition("loaded ")[2].split())


@pytest.mark.parametrize("module", ["gateway.apps.ingest", "darkroom.processes.ingest"])
def test_importing_the_ingest_gateway_loads_no_heavy_library(module: str) -> None:
    """The ingest app and its process module load neither the Qdrant client, nor Faust, nor torch."""
    assert loaded(f"import {module}").isdisjoint(HEAVY)


def test_a_started_gateway_has_loaded_no_heavy_library(tmp_path: Path) -> None:
    """`darkroom gateway`, settings read and every component open, has loaded none of them either.

    Nor what its settings do not ask for: PyJWT without JWT keys, the Redis client without a Redis.
    """
    with socket.socket() as closed:  # bound, not listening: connections to it are refused
        closed.bind(("127.0.0.1", 0))
        modules = loaded(
            STARTED_GATEWAY,
            DARKROOM_FILES__DIRECTORY=str(tmp_path),
            DARKROOM_KAFKA__BOOTSTRAP=f"127.0.0.1:{closed.getsockname()[1]}",
        )
    assert "fastapi" in modules
    assert modules.isdisjoint(HEAVY | {"jwt", "redis"})


def test_importing_the_query_gateway_loads_neither_faust_nor_torch() -> None:
    """The query process loads Faust only with the indexer in process, torch only with CLIP's weights."""
    assert loaded("import darkroom.processes.gateways").isdisjoint({"faust", "torch"})


def test_the_help_loads_no_web_framework() -> None:
    """`darkroom --help` loads all commands, but neither FastAPI nor a heavy library."""
    modules = loaded(HELP)
    assert "darkroom.commands.submit" in modules
    assert modules.isdisjoint(HEAVY | {"fastapi"})
