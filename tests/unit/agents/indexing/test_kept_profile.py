"""The profile of an image in its record: reruns and lost events are worked on as the image was submitted."""

from __future__ import annotations

from agents.stages.indexer import Tools, index
from schemas.values import Profile, new_image_id
from streams.operations.rerun_events import work_of
from tests.support.facts import Facts

PARAMETERS = {"resizer": {"sides": {"small": 100}}, "detector": {"confidence": 0.6}}


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
