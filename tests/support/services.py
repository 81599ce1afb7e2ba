"""Fixtures of real services: `kafka`, `minio` and `redis`."""

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
    """Return the session's Kafka; each test needs its own topic prefix."""
    server = LocalKafka(tmp_path_factory.mktemp("kafka"), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@pytest.fixture(scope="session")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalMinio]:
    """Return the session's MinIO; each test needs its own bucket or keys."""
    server = LocalMinio(tmp_path_factory.mktemp("minio"), port=0)
    asyncio.run(server.start())
    yield server
    asyncio.run(server.stop())


@dataclass(slots=True)
class LocalRedis:
    """A Redis without persistence."""

    folder: Path
    port: int = field(default_factory=lambda: choose(0))
    _child: Child | None = None

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        """The process id."""
        assert self._child is not None, "Redis is not running"
        return self._child.pid

    def start(self) -> None:
        """Start an empty Redis and wait until it answers PING."""
        program = shutil.which("redis-server")
        if program is None:
            pytest.fail("redis-server is not installed: run `make setup` as root, or `apt-get install redis-server`")
        no_persistence = ["--save", "", "--appendonly", "no", "--dir", str(self.folder)]
        command = [program, "--bind", "127.0.0.1", "--port", str(self.port), *no_persistence]
        self._child = Child(command, log_file=self.folder / "redis.log")
        deadline = time.monotonic() + PATIENCE_S
        with Redis.from_url(self.url) as client:
            while True:
                try:
                    client.ping()
                except RedisError:
                    log = (self.folder / "redis.log").read_text()
                    assert self._child.exit_code is None and time.monotonic() < deadline, f"Redis did not start: {log}"
                    time.sleep(0.05)
                else:
                    return

    def stop(self) -> None:
        """Kill Redis; its data is lost."""
        if self._child is not None:
            self._child.kill()
            self._child = None


@contextmanager
def suspended(server: LocalRedis) -> Iterator[None]:
    """Suspend a Redis: it accepts connections and does not answer."""
    process = psutil.Process(server.pid)
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[LocalRedis]:
    """Return an empty Redis for one test."""
    server = LocalRedis(tmp_path)
    server.start()
    yield server
    server.stop()
