"""Real services for tests: the fixtures `kafka`, `minio` and `redis`."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio
from infra.local.ports import choose
from infra.local.process import Child

PATIENCE_S = 60.0


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


@dataclass(slots=True)
class LocalRedis:
    """A Redis that keeps nothing on disk."""

    folder: Path
    port: int = field(default_factory=lambda: choose(0))
    _child: Child | None = None

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._child is not None, "it does not run"
        return self._child.pid

    def start(self) -> None:
        """Start it, empty, and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not installed: run `make setup` as root, or `apt-get install redis-server`")
        kept_nowhere = ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        command = [program, "--bind", "127.0.0.1", "--port", str(self.port), *kept_nowhere]
        self._child = Child(command, log_file=self.folder / "redis.log")
        deadline = time.monotonic() + PATIENCE_S
        with Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                except RedisError:
                    said = (self.folder / "redis.log").read_text()
                    assert self._child.exit_code is None and time.monotonic() < deadline, f"no Redis: {said}"
                    time.sleep(0.05)
                else:
                    return

    def stop(self) -> None:
        """End it; what it knew is gone."""
        if self._child is not None:
            self._child.kill()
            self._child = None


@contextmanager
def suspended(server: LocalRedis) -> Iterator[None]:
    """Have a Redis hang: it takes connections, and answers nobody."""
    process = psutil.Process(server.pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[LocalRedis]:
    """Return a running, empty Redis of this test."""
    server = LocalRedis(tmp_path)
    server.start()
    yield server
    server.stop()
