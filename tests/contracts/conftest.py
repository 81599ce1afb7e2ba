"""The read model of each kind that the contract suites test."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from qdrant_client import QdrantClient

from streams.concurrency.circuit_breaker import Breakers
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import QdrantSettings
from tests.support.read_models import in_memory

SERVER = os.environ.get("DARKROOM_TEST_QDRANT_URL")


@pytest.fixture(params=["engine", "calls", *(["server"] if SERVER else [])])
async def model(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ReadModel]:
    """An empty read model of each kind."""
    name = f"test-{uuid.uuid4().hex}"
    if request.param == "calls":
        async with in_memory(name) as calls:
            yield calls
    elif request.param == "engine":
        where = QdrantSettings(path=tmp_path / "qdrant", collection=name)
        async with open_read_model(where, Breakers()) as engine:  # as in every process
            yield engine
    else:
        async with open_read_model(QdrantSettings(url=SERVER, collection=name)) as server:
            yield server
        QdrantClient(url=SERVER).delete_collection(name)
