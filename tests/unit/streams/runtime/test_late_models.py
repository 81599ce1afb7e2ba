"""A model that is loaded while an event is processed: its result is not stored as one without a model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from pydantic import JsonValue

from schemas.events.intake import ImageUploaded
from schemas.stored.results import StageResult
from streams import topics
from streams.object_store.factory import open_files
from streams.object_store.protocol import FileStore
from streams.object_store.results import StoredResult
from streams.settings import FilesSettings
from streams.stage import Once, Resources, Stage, StageSettings
from streams.testing.memory_log import MemoryLog, MemoryWorker
from tests.support.stage_kit import bench, message, uploaded


@pytest.fixture
async def files(tmp_path: Path) -> AsyncIterator[FileStore]:
    """An object store in a folder."""
    async with open_files(FilesSettings(directory=tmp_path)) as store:
        yield store


class Answer(StageResult):
    """A result."""

    value: int = 1


@dataclass
class Tools:
    """A model that becomes available."""

    weights: str | None = None


TOOLS = Tools()


@asynccontextmanager
async def _opened(_settings: StageSettings, _resources: Resources) -> AsyncIterator[Tools]:
    yield TOOLS


def _parameters(_event: ImageUploaded, tools: Tools) -> Mapping[str, JsonValue]:
    return {"weights": tools.weights}


async def _loads_meanwhile(_event: ImageUploaded, tools: Tools) -> Answer:
    tools.weights = "abc"
    return Answer()


STAGE: Stage[ImageUploaded, Tools, Answer] = Stage(
    name="sanitizer",
    version="1",
    consumes=(topics.UPLOADED,),
    emits=(topics.FACTS,),
    settings=StageSettings,
    open=_opened,
    process=_loads_meanwhile,
    once=Once(result=Answer, input=lambda event: event.original, parameters=_parameters),
)


async def test_a_result_is_named_by_the_model_that_computed_it(files: FileStore) -> None:
    """Its key and its lineage have the weights; a second equal image, processed with them, reuses it."""
    log = MemoryLog()
    event = uploaded()
    await files.put(event.original.key, b"abc", content_type="image/png", sha256=event.original.sha256)
    worker = MemoryWorker(log, STAGE.name, ["image.uploaded"], bench(STAGE, files, log, tools=TOOLS).intake)
    for one in (event, uploaded()):
        await log.deliver([message(one)])
        await worker.until_idle()
    assert await worker.stop()
    stored = [StoredResult.model_validate_json(await files.get(key.key)) async for key in files.list("results/")]
    assert [one.lineage.parameters for one in stored] == [{"weights": "abc"}]
    assert len(log.records("image.facts")) == 2
