"""Real services for tests: `pytest_plugins = ["tests.services"]` gives the fixtures `kafka` and `minio`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio


@pytest.fixture(scope="session")
def kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalKafka]:
    """Return a running Kafka of this test session; give your topics a prefix of their own."""
    server = LocalKafka(tmp_path_factory.mktemp("kafka"), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMinio]:
    """Return a running MinIO of this test session; make your own bucket, or use keys of your own."""
    server = LocalMinio(tmp_path_factory.mktemp("minio"), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())
