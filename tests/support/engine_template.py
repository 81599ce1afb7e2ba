"""New engines of the read model copied from one that is empty: creating one syncs 200 files, which takes seconds.

For processes that tests fork, which would each create theirs. What is copied is what the engine wrote, holes included.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

import qdrant_edge as edge
from qdrant_client import models

from streams.read_model.qdrant.documents import INDEXES, SPARSE, vectors_of_collection
from streams.read_model.qdrant.edge_points import EdgePoints

_create = EdgePoints._create


def copy_new_engines() -> None:
    """Let this process and those it forks copy new engines."""

    def copied(self: EdgePoints, dense: Mapping[str, models.VectorParams], sparse: Sequence[str]) -> None:
        self._folder.parent.mkdir(parents=True, exist_ok=True)
        if self._folder.is_dir():
            self._folder.rmdir()
        _copy(_template(), self._folder)
        self._opened = edge.EdgeShard.load(str(self._folder))

    EdgePoints._create = copied  # type: ignore[method-assign]


def create_new_engines() -> None:
    """Let this process create new engines, as in production: for tests of their creation."""
    EdgePoints._create = _create  # type: ignore[method-assign]


def _template() -> Path:
    """Return an empty engine with all indexes, made once for each version of the engine and of the schema."""
    made_of = repr((version("qdrant-edge-py"), sorted(SPARSE.items()), sorted(map(repr, INDEXES.items()))))
    folder = Path(tempfile.gettempdir()) / f"darkroom-engine-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            _make(folder)
    return folder


def _make(folder: Path) -> None:
    begun = Path(tempfile.mkdtemp(dir=folder.parent)) / "shard"
    points = EdgePoints(begun)
    _create(points, vectors_of_collection(), list(SPARSE.values()))
    for key, schema in INDEXES.items():
        points.add_index(key, schema)
    points.close()
    begun.rename(folder)
    shutil.rmtree(begun.parent)


def _copy(source: Path, target: Path) -> None:
    """Copy a folder of files with holes: 1 MB of 600."""
    for folder, _, files in os.walk(source):
        into = target / Path(folder).relative_to(source)
        into.mkdir(mode=0o700)
        for name in files:
            _copy_file(Path(folder) / name, into / name)


def _copy_file(source: Path, target: Path) -> None:
    with source.open("rb") as original, target.open("wb") as copy:
        size = os.fstat(original.fileno()).st_size
        os.truncate(copy.fileno(), size)
        place = 0
        while place < size:
            try:
                place = os.lseek(original.fileno(), place, os.SEEK_DATA)
            except OSError:  # only a hole is left
                return
            end = os.lseek(original.fileno(), place, os.SEEK_HOLE)
            os.pwrite(copy.fileno(), os.pread(original.fileno(), end - place, place), place)
            place = end
