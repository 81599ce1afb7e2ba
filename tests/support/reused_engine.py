"""One engine of the read model for many tests: opening one creates 200 files, with as many syncs to disk.

A folder's shard stays open when its read model is closed, and is emptied when another folder needs it. What a test has
written to a folder is still there when it opens that folder again. Tests of the engine itself open their own.
"""

from __future__ import annotations

import atexit
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest
from qdrant_client import models

from streams.read_model import factory
from streams.read_model.qdrant.documents import COLLECTION_POINT
from streams.read_model.qdrant.edge_points import EdgePoints
from streams.read_model.qdrant.points import Points
from streams.settings import QdrantSettings

_spare: dict[Path, EdgePoints] = {}  # closed by their read models, the longest unused first
_root = Path(tempfile.mkdtemp(prefix="darkroom-engine-"))


class ReusedPoints(EdgePoints):
    """A shard of its own folder that stands for the shard of the folder a test names."""

    def __init__(self, named: Path) -> None:
        super().__init__(Path(tempfile.mkdtemp(dir=_root)) / "shard")
        self._named = named

    def open(self, dense: Mapping[str, models.VectorParams], sparse: Sequence[str]) -> bool:
        return super().open(dense, sparse) if self._opened is None else False

    def close(self) -> None:
        """Keep the shard for the next test."""
        _spare[self._named] = self

    def renamed(self, named: Path) -> ReusedPoints:
        """Empty the shard and let it stand for another folder."""
        everything = models.Filter(must_not=[models.HasIdCondition(has_id=[COLLECTION_POINT])])
        self.write([models.DeleteOperation(delete=models.FilterSelector(filter=everything))])
        self._named = named
        return self


def reused_points(settings: QdrantSettings) -> Points:
    """Return the shard of the folder in the settings, or an empty one that stands for it."""
    named = settings.path / "edge" / settings.collection
    points = _spare.pop(named, None)
    if isinstance(points, ReusedPoints):
        return points
    if _spare:
        unused = _spare.pop(next(iter(_spare)))
        assert isinstance(unused, ReusedPoints)
        return unused.renamed(named)
    return ReusedPoints(named)


@pytest.fixture(autouse=True, scope="package")
def reused_engine() -> Iterator[None]:
    """Open the read models of a package's tests on engines of earlier ones."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(factory, "_engine", reused_points)
        yield


@atexit.register
def _remove() -> None:
    shutil.rmtree(_root, ignore_errors=True)
