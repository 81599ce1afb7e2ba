"""The profile of an image in its record: reruns and lost events are worked on as the image was submitted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from agents.stages.indexer import STAGE, IndexerSettings, Tools, index
from schemas.values import Profile, new_image_id
from streams.object_store.factory import open_files
from streams.operations.rerun_events import work_of
from streams.settings import FilesSettings, QdrantSettings, Settings
from streams.stage import Resources
from streams.telemetry.health_board import HealthBoard
from tests.support.facts import Facts

PARAMETERS = {"resizer": {"sides": {"small": 100}}, "detector": {"confidence": 0.6}}


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    settings = Settings(qdrant=QdrantSettings(path=tmp_path / "qdrant"))
    async with (
        open_files(FilesSettings(directory=tmp_path / "objects")) as files,
        STAGE.open(IndexerSettings(), Resources(settings, files, HealthBoard())) as opened,
    ):
        yield opened


async def test_the_event_of_a_rerun_has_the_parameters_of_the_submission(tools: Tools) -> None:
    """The record keeps stages and parameters, and the event rebuilt from it has both."""
    image = new_image_id()
    sanitized = Facts(image).sanitized()
    profile = Profile(stages=sanitized.profile.stages, parameters=PARAMETERS)
    await index(sanitized.model_copy(update={"profile": profile}), tools)
    record = await tools.read_model.get(image)
    assert record is not None
    event = work_of(record, run=1)
    assert event is not None
    assert event.profile.parameters == PARAMETERS
    assert set(event.profile.stages) == set(record.required)
