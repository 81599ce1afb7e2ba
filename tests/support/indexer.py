"""The indexer's tools on an in-process read model and a file store in a folder."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from agents.stages.indexer import STAGE, IndexerSettings, Tools
from streams.object_store.factory import open_files
from streams.settings import FilesSettings, QdrantSettings, Settings
from streams.stage import FindStage, Resources, no_stages
from streams.telemetry.health_board import HealthBoard


@asynccontextmanager
async def indexer_tools(folder: Path, find_stage: FindStage = no_stages) -> AsyncIterator[Tools]:
    """Open the tools as the runtime does; `find_stage` is the stage table."""
    settings = Settings(qdrant=QdrantSettings(path=folder / "qdrant"))
    async with open_files(FilesSettings(directory=folder / "objects")) as files:
        resources = Resources(settings, files, HealthBoard(), find_stage=find_stage)
        async with STAGE.open(IndexerSettings(), resources) as tools:
            yield tools
