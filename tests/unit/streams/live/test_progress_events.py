"""Progress events: every fact and outcome has one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from schemas.events.envelope import Event, Record
from schemas.events.facts import FACTS, Fact, ImageRefused, StageFailed, StageSkipped
from schemas.events.outcomes import OUTCOMES, Outcome
from schemas.http.live import LiveEvent
from schemas.values import StageState
from streams.live.progress_events import PUBLISHED, progress_event_of

GOLDEN = Path(__file__).parents[3] / "data" / "events"
STATES = {StageSkipped: StageState.SKIPPED, ImageRefused: StageState.REJECTED, StageFailed: StageState.FAILED}


def golden(kind: type[Event]) -> Record:
    """Return the smallest golden event of a type."""
    _, _, verb, version = kind.type.split(".")
    saved = json.loads((GOLDEN / version / f"{verb}.smallest.json").read_text())
    headers = tuple((name, value.encode()) for name, value in saved["headers"].items())
    return Record("t", 0, 0, saved["key"].encode(), json.dumps(saved["body"]).encode(), headers)


def test_the_published_types_are_the_facts_and_the_outcomes() -> None:
    """A new type needs a case in `streams.live.progress_events`."""
    assert set(PUBLISHED) == {*FACTS, *OUTCOMES}


@pytest.mark.parametrize("kind", [*FACTS, *OUTCOMES], ids=lambda kind: kind.__name__)
def test_every_fact_and_outcome_is_published(kind: type[Event]) -> None:
    """Facts of stages are published with the state of the stage, outcomes with the state of the image."""
    published = progress_event_of(golden(kind))
    assert published is not None
    if issubclass(kind, Fact):
        assert published.name is LiveEvent.STAGE
        assert getattr(published.data, "state", None) is STATES.get(kind, StageState.DONE)
    elif issubclass(kind, Outcome):
        assert published.name.value == kind.type.split(".")[2]
    else:
        assert published.name in (LiveEvent.DELETING, LiveEvent.ANNOTATED, LiveEvent.RETRYING)
    assert published.ends is issubclass(kind, Outcome)
    assert published.deletes is (published.name in (LiveEvent.DELETING, LiveEvent.DELETED))
