"""Imports the processes of Darkroom, without models; the server of forked processes loads this module once."""

from __future__ import annotations

import gc
import pkgutil
from importlib import import_module

import agents.stages
import darkroom.commands
import darkroom.processes
import streams.read_model.qdrant.edge_points
import streams.read_model.qdrant.model
import streams.read_model.qdrant.server_points  # noqa: F401  all load qdrant-client, when a process asks for it
from tests.support.engine_template import copy_new_engines

copy_new_engines()

for package in (darkroom.processes, agents.stages, darkroom.commands):
    for module in pkgutil.iter_modules(package.__path__, f"{package.__name__}."):
        import_module(module.name)

gc.freeze()  # a collection in a forked process must not copy the memory of what was imported here
