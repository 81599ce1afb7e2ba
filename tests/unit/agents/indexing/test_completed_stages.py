"""Results of stages without a fact type of their own: validated by the stage's model, recorded as it declares."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field, JsonValue

from agents.core.merge import HANDLERS
from agents.indexing.record_facts import learn_completed
from agents.stages.indexer import Tools, index
from gateway.images.views import analysis
from schemas.events.facts import FACTS, Fact, StageCompleted
from schemas.http.history import LineageKind
from schemas.stored.results import StageResult
from schemas.values import ErrorCode, ImageState, ObjectRef, StageState, new_image_id
from streams import topics
from streams.errors import Malformed
from streams.object_store.keys import image_key
from streams.read_model.records import ImageRecord
from streams.stage import Announcement, Once, Resources, Stage, StageSettings, completed
from tests.support.facts import Facts, ref, report
from tests.support.indexer import indexer_tools


class Score(StageResult):
    score: float = Field(ge=0)
    secret: str = ""


@asynccontextmanager
async def nothing(_settings: StageSettings, _resources: Resources) -> AsyncIterator[None]:
    yield None


async def never(_event: Any, _tools: None) -> Score:
    raise AssertionError("these tests run no stage")


def stage(name: str, **changes: Any) -> Stage[Any, Any, Any]:
    declared: dict[str, Any] = {
        "record": lambda result: {"score": result.score, "secret": result.secret},
        "public": ("score",),
        "once": Once(result=Score, input=lambda event: event.image.master, parameters=lambda _event, _tools: {}),
    }
    return Stage(
        name=name, version="1", consumes=(topics.SANITIZED,), emits=(topics.FACTS,), settings=StageSettings,
        open=nothing, process=never, **(declared | changes),
    )  # fmt: skip


STAGES = {name: stage(name) for name in ("aesthetics", "sharpness")} | {"mute": stage("mute", record=None)}
PROFILE = ("sanitizer", "sharpness", "aesthetics")


@pytest.fixture
async def tools(tmp_path: Path) -> AsyncIterator[Tools]:
    """Return the indexer's tools with a table of generic stages."""
    async with indexer_tools(tmp_path, STAGES.__getitem__) as opened:
        yield opened


def fact(image_id: str, name: str, result: dict[str, JsonValue], run: int = 0) -> StageCompleted:
    profile = Facts(image_id, stages=PROFILE).sanitized().profile
    return StageCompleted(image_id=image_id, owner="anna", run=run, profile=profile, report=report(name), result=result)


async def record_of(image_id: str, tools: Tools) -> ImageRecord:
    found = await tools.read_model.get(image_id)
    assert found is not None
    return found


def test_every_fact_has_one_handler() -> None:
    """The handler table covers every Fact of the log; StageCompleted is handled by the stage's declaration."""
    assert set(HANDLERS) | {StageCompleted} == {kind for kind in FACTS if issubclass(kind, Fact)}


async def test_results_of_two_stages_are_recorded_side_by_side(tools: Tools) -> None:
    """Each stage's declared keys are stored under its name; clients see the public ones; the image completes."""
    image = new_image_id()
    await index(Facts(image, stages=PROFILE).sanitized(), tools)
    await index(fact(image, "sharpness", {"score": 2.5, "secret": "s"}), tools)
    assert (await record_of(image, tools)).state is ImageState.PROCESSING
    await index(fact(image, "aesthetics", {"score": 0.5}), tools)
    record = await record_of(image, tools)
    assert record.state is ImageState.COMPLETED
    assert record.analysis == {"sharpness": {"score": 2.5, "secret": "s"}, "aesthetics": {"score": 0.5, "secret": ""}}
    assert analysis(record) == {"sharpness": {"score": 2.5}, "aesthetics": {"score": 0.5}}
    assert record.stages["sharpness"].lineage is LineageKind.ANALYSIS


async def test_a_rerun_replaces_its_own_stage_only(tools: Tools) -> None:
    """The later run's result wins, in whatever order the facts arrive; a failed rerun leaves the older result."""
    image = new_image_id()
    await index(Facts(image, stages=PROFILE).sanitized(), tools)
    for run, score in ((7, 3.0), (0, 1.0)):
        await index(fact(image, "sharpness", {"score": score}, run=run), tools)
    await index(Facts(image, run=9, stages=PROFILE).failed("sharpness"), tools)
    record = await record_of(image, tools)
    assert record.analysis == {"sharpness": {"score": 3.0, "secret": ""}}
    assert record.stages["sharpness"].state is StageState.DONE


@pytest.mark.parametrize(
    ("name", "result", "code"),
    [
        ("sharpness", {"score": -1}, ErrorCode.MALFORMED_EVENT),
        ("sharpness", {}, ErrorCode.MALFORMED_EVENT),
        ("mute", {"score": 1}, ErrorCode.MALFORMED_EVENT),
        ("from-the-future", {"score": 1}, ErrorCode.UNKNOWN_EVENT),
    ],
)
async def test_an_unreadable_result_is_dead_lettered(
    tools: Tools, name: str, result: dict[str, JsonValue], code: ErrorCode
) -> None:
    """A result the model refuses, a stage that records nothing and an unknown stage raise Malformed with a code."""
    image = new_image_id()
    with pytest.raises(Malformed) as raised:
        await index(fact(image, name, result), tools)
    assert raised.value.code is code
    assert await tools.read_model.get(image) is None


def test_a_stage_announces_its_result_by_default() -> None:
    """Without `announce`, the runtime emits StageCompleted with the report and the result as its model writes it."""
    event = Facts(new_image_id()).sanitized()
    ((topic, emitted),) = completed(event, Score(score=1.5), Announcement(report("sharpness"), ref("e"))).events
    assert topic is topics.FACTS
    assert isinstance(emitted, StageCompleted)
    assert emitted.result == {"score": 1.5, "secret": ""}
    assert (emitted.image_id, emitted.owner, emitted.producing_stage()) == (event.image_id, "anna", "sharpness")


class Map(Score):
    where: ObjectRef

    def objects(self) -> Mapping[str, ObjectRef]:
        return {"map.png": self.where}


def test_an_object_outside_the_image_is_refused() -> None:
    """A generic result may name files of its image only."""
    image = new_image_id()
    once: Once[Any, None, Map] = Once(
        result=Map, input=lambda event: event.image.master, parameters=lambda _event, _tools: {}
    )
    table = {"map": stage("map", once=once)}
    for key, allowed in ((image_key(image, 1, "map.png"), True), ("keys/abc.json", False)):
        found = fact(image, "map", {"score": 1, "where": ref("a", key).model_dump(mode="json")})
        if allowed:
            assert learn_completed(found, table.__getitem__).state is StageState.DONE
            continue
        with pytest.raises(Malformed) as raised:
            learn_completed(found, table.__getitem__)
        assert raised.value.code is ErrorCode.REFERENCE_NOT_ALLOWED
