"""Reprocessing jobs on a read model, an object store and a log without Kafka."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from agents.indexing.record_facts import record as record_fact
from schemas.events.envelope import Event, decode
from schemas.events.facts import Fact, ImageSanitized
from schemas.values import ImageState, new_image_id
from streams.lanes.bulk_lane import read_bulk
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones
from streams.operations.reprocess_jobs import JobState, ReprocessJob, ReprocessJobs, ReprocessRunner
from streams.read_model.factory import open_read_model
from streams.read_model.protocol import ReadModel
from streams.settings import FilesSettings, QdrantSettings
from streams.testing.memory_log import MemoryLog
from streams.topics import BULK, LANE_TARGET_HEADER
from tests.support.facts import Facts
from tests.support.read_models import merge


@dataclass
class Backends:
    """A read model, an object store and a log, with a clock that only `sleep` advances."""

    files: FileStore
    read_model: ReadModel
    log: MemoryLog = field(default_factory=MemoryLog)
    time: float = 1000.0
    waiting: int = 0

    def runner(self) -> ReprocessRunner:
        """Return a new runner, with no state but what is stored."""
        return ReprocessRunner(
            self.files, self.read_model, self.log, waiting=self._waiting, clock=lambda: self.time, sleep=self._sleep
        )

    async def _sleep(self, seconds: float) -> None:
        self.time += seconds

    async def _waiting(self) -> int:
        return self.waiting

    async def record(self, *facts: Fact) -> None:
        """Record facts in the read model as the indexer does."""
        for fact in facts:
            await record_fact(fact, self.read_model, Tombstones(self.files))

    async def complete(
        self, count: int = 1, *, source_url: str | None = None, stages: tuple[str, ...] | None = None
    ) -> list[str]:
        """Create completed images; return their ids, oldest first."""
        images: list[str] = [new_image_id() for _ in range(count)]
        for image in images:
            facts = Facts(image, stages=stages)
            first, *others = [fact for fact in facts.all() if stages is None or fact.report.stage in stages]
            if source_url is not None:
                first = facts.sanitized(source_url=source_url)
            await self.record(first, *others)
            await merge(self.read_model, image, 1, {"state": ImageState.COMPLETED.value})
            assert isinstance(first, ImageSanitized)
            await self.files.put(first.original.key, b"x", content_type="image/jpeg")
        return images

    def emitted(self) -> list[tuple[str, Event]]:
        """Return the events in the bulk lane with their targets, by image id."""
        found = []
        for record in sorted(self.log.records(BULK.name), key=lambda record: record.header("ce_subject") or ""):
            read_bulk(record)
            found.append((record.header(LANE_TARGET_HEADER) or "", decode(record, BULK.events)))
        return found

    def emitted_images(self) -> list[str]:
        return [event.image_id for _, event in self.emitted()]

    async def finish(self, job: ReprocessJob, *, slices: int = 50) -> ReprocessJob:
        """Run a job until it has ended."""
        runner = self.runner()
        for _ in range(slices):
            await runner.run_due()
            found = await ReprocessJobs(self.files).get(job.id)
            assert found is not None
            if found.state is not JobState.RUNNING:
                return found
        raise AssertionError(f"the job has not ended after {slices} slices: {found}")


@asynccontextmanager
async def open_backends(folder: Path) -> AsyncIterator[Backends]:
    """Open empty backends in a folder."""
    async with (
        open_files(FilesSettings(directory=folder / "objects")) as files,
        open_read_model(QdrantSettings(path=folder / "qdrant")) as read_model,
    ):
        yield Backends(files, read_model)
