"""One interface to two logs: in memory, and a real Kafka with worker processes."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from schemas.events.envelope import Outgoing, Record
from streams.errors import DependencyUnavailable
from streams.kafka.admin import KafkaAdmin
from streams.kafka.bounded_read import read_topic
from streams.kafka.producer import open_producer
from streams.object_store.factory import open_files
from streams.settings import FilesSettings, KafkaSettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from streams.topics import FACTS, FETCHED, UPLOADED, agent_topics
from tests.contracts.scripted_worker import SETTINGS, STAGE
from tests.support.stage_kit import bench

TOPICS = ["image.uploaded", "image.fetched", "sanitizer.retry"]


class LogUnderTest(Protocol):
    """The operations of the contract suite."""

    async def send(self, messages: Sequence[Outgoing]) -> None:
        """Deliver messages."""

    async def start(self) -> None:
        """Start a worker of the scripted stage."""

    async def kill(self) -> None:
        """Kill the newest worker, as by SIGKILL."""

    async def stop(self) -> None:
        """Stop the newest worker, as by SIGTERM; it must drain."""

    async def until_idle(self, timeout_s: float = 60) -> None:
        """Wait until the stage has no lag."""

    async def records(self, topic: str) -> list[Record]:
        """Return all records of a topic."""

    async def close(self) -> None:
        """Kill all workers."""


class InMemory:
    """The in-memory log, with workers in this process."""

    def __init__(self, folder: Path) -> None:
        self.log = MemoryLog()
        self._folder = folder
        self._workers: list[MemoryWorker] = []

    async def send(self, messages: Sequence[Outgoing]) -> None:
        await self.log.deliver(messages)

    async def start(self) -> None:
        async with open_files(FilesSettings(directory=self._folder)) as files:
            on = bench(STAGE, files, self.log, settings=SETTINGS)
        self._workers.append(MemoryWorker(self.log, "sanitizer", TOPICS, on.intake))

    async def kill(self) -> None:
        await self._workers.pop().kill()

    async def stop(self) -> None:
        assert await self._workers.pop().stop()

    async def until_idle(self, timeout_s: float = 60) -> None:
        await self._workers[-1].until_idle(patience_s=timeout_s)

    async def records(self, topic: str) -> list[Record]:
        return self.log.records(topic)

    async def close(self) -> None:
        for worker in self._workers:
            await worker.kill()


class OnKafka:
    """A real Kafka; each worker is a process."""

    def __init__(self, bootstrap: str, folder: Path, **environment: str) -> None:
        self.settings = KafkaSettings(bootstrap=bootstrap, prefix=f"t{uuid.uuid4().hex[:8]}.")
        self.folder = folder
        self.admin = KafkaAdmin(self.settings)
        self.workers: list[asyncio.subprocess.Process] = []
        self.environment = environment

    async def prepare(self) -> OnKafka:
        """Create the topics and wait until they are readable: metadata names leaders before they accept requests."""
        created = [UPLOADED, FETCHED, FACTS, *agent_topics("sanitizer")]
        await self.admin.create_topics(created)
        async with asyncio.timeout(60):
            for topic in created:
                while not await self._readable(topic.name):
                    await asyncio.sleep(0.1)
        return self

    async def _readable(self, topic: str) -> bool:
        try:
            await self.records(topic)
        except DependencyUnavailable:
            return False
        return True

    async def send(self, messages: Sequence[Outgoing]) -> None:
        async with open_producer(self.settings, source="test") as producer:
            await producer.deliver(messages)

    async def start(self, **environment: str) -> None:
        env = {
            **os.environ,
            "DARKROOM_KAFKA__BOOTSTRAP": self.settings.bootstrap,
            "DARKROOM_KAFKA__PREFIX": self.settings.prefix,
            "DARKROOM_FILES__DIRECTORY": str(self.folder),
            "DARKROOM_WORKER__SESSION_TIMEOUT_S": "6",
            "DARKROOM_WORKER__COMMIT_INTERVAL_S": "0.2",
            "DARKROOM_WORKER__STATE_DIR": str(self.folder / "state"),
            "DARKROOM_WORKER__CRASH_LIMIT": "10",  # the kills of these tests do not indicate poison events
            **self.environment,
            **environment,
        }
        with (self.folder / f"worker-{len(self.workers)}.log").open("ab") as log:
            worker = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "tests.contracts.scripted_worker", env=env, stderr=log, stdout=log
            )
        self.workers.append(worker)

    async def kill(self) -> None:
        worker = self.workers.pop()
        worker.send_signal(signal.SIGKILL)
        await worker.wait()

    async def stop(self) -> None:
        worker = self.workers.pop()
        worker.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(worker.wait(), 60) == 0

    async def until_idle(self, timeout_s: float = 60) -> None:
        async with asyncio.timeout(timeout_s):
            while await self._lag():
                assert all(worker.returncode is None for worker in self.workers), "a worker died"
                await asyncio.sleep(0.1)

    async def _lag(self) -> int:
        try:
            return await self.admin.lag("sanitizer", TOPICS)
        except DependencyUnavailable:  # the coordinator of a new group may still be loading
            return 1

    async def records(self, topic: str) -> list[Record]:
        return await asyncio.to_thread(read_topic, self.settings, topic)

    async def close(self) -> None:
        for worker in self.workers:
            if worker.returncode is None:
                worker.kill()
                await worker.wait()
