"""Run an agent as a later release with another stage version: `python -m tests.faults.another_version resizer 2`."""

from __future__ import annotations

import dataclasses
import importlib
import sys
from typing import Any

from darkroom.processes.workers import run_agent

if __name__ == "__main__":
    name, version = sys.argv[1:]
    module: Any = importlib.import_module(f"agents.stages.{name}")
    module.STAGE = dataclasses.replace(module.STAGE, version=version)
    sys.exit(run_agent(name))
