"""Fixtures of the security tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.settings import FilesSettings
from tests.security.jwks import Jwks, serving_keys
from tests.support.reused_engine import reused_engine

__all__ = ["jwks", "reused_engine", "store"]


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[FileStore]:
    """Return an object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path / "objects")) as files:
        yield files


@pytest.fixture
def jwks() -> Iterator[Jwks]:
    """Return a server of published keys."""
    with serving_keys() as found:
        yield found
