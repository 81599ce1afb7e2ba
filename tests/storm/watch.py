"""Samples of memory and committed offsets during a run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count

import psutil

from streams.topics import AGENTS
from tests.storm.evidence import CommitSample
from tests.storm.gathering import sample_commits
from tests.storm.world import World

_SAMPLE_S = 2.0
_COMMITS_EVERY = 4  # samples of memory
_LIMITS_MB = {"core": 1_000, "ocr": 1_800, "detector": 1_500, "embedder": 1_500}
_LIMIT_MB = 500  # of all other processes


@dataclass(slots=True)
class Watch:
    """Samples memory and committed offsets of all processes."""

    world: World
    peaks: dict[str, int] = field(default_factory=dict)
    commits: list[CommitSample] = field(default_factory=list)

    async def run(self) -> None:
        """Sample until cancelled."""
        for number in count():
            for name, process in self.world.processes().items():
                try:
                    self.peaks[name] = max(self.peaks.get(name, 0), process.memory_info().rss)
                except psutil.Error:
                    continue
            if number % _COMMITS_EVERY == 0:
                sample = await sample_commits(self.world.kafka, [agent for agent in AGENTS if agent != "indexer"])
                if sample is not None:
                    self.commits.append(sample)
            await asyncio.sleep(_SAMPLE_S)

    def memory(self) -> dict[str, tuple[int, int]]:
        """Return the peak and the limit of each process, in bytes."""
        return {name: (peak, _LIMITS_MB.get(name, _LIMIT_MB) * 10**6) for name, peak in self.peaks.items()}


@asynccontextmanager
async def watching(world: World) -> AsyncIterator[Watch]:
    """Sample within the block."""
    watch = Watch(world)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
