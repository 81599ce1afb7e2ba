"""Image filters."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from schemas.values import ImageState, StageState
from streams.operations.image_filter import Selection, WrongFilter, read_selection
from streams.read_model.records import ImageRecord, StageRecord

IMAGE = "0190a1b2-0000-7000-8000-00000000000a"
RECORD = ImageRecord(
    image_id=IMAGE,
    owner="anna",
    generation=1,
    state=ImageState.COMPLETED,
    bucket="trip",
    labels=("Traffic light", "person"),
    text="Hello World",
    submitted_at="2026-03-05T12:00:00.000Z",
    stages={
        "sanitizer": StageRecord(state=StageState.DONE, version="1"),
        "ocr": StageRecord(state=StageState.DONE, version="1.9"),
        "embedder": StageRecord(state=StageState.SKIPPED, version="2024-beta"),
    },
)


@pytest.mark.parametrize(
    ("where", "selected"),
    [
        ("", True),
        ("  ", True),
        ("state=completed", True),
        ("state!=completed", False),
        ("owner=anna and bucket=trip", True),
        ("owner=anna and bucket=other", False),
        (f"id={IMAGE}", True),
        (f"id!={IMAGE}", False),
        ('label="traffic light"', True),
        ("label!=person", False),
        ("label=bus", False),
        ("text~world", True),
        ('text~"o w"', True),
        ("text~moon", False),
        ("submitted>=2026-03-05", True),
        ("submitted<2026-03-05", False),
        ("submitted<2026-03-05T13:00:00+01:00", False),
        ("submitted<=2026-03-05T13:00:00+01:00", True),
        ("stage.embedder=skipped", True),
        ("stage.ocr=failed", False),
        ("stage.ocr=pending", False),
        ("stage.ocr!=pending", True),
        ("stage.detector=pending", True),
        ("stage.detector!=pending", False),
        ("stage.resizer!=done", False),  # the stage has no result
        ("version.ocr<1.10", True),
        ("version.ocr>=2", False),
        ("version.ocr!=2", True),
        ("version.embedder=2024-beta", True),
        ("version.embedder<3", False),  # not a numeric version
        ("version.resizer<9", False),
        ("state=completed AND version.ocr<2 and text~hello", True),
    ],
)
def test_what_a_filter_selects(where: str, selected: bool) -> None:
    """All terms must match; a stage without a result matches no term."""
    assert read_selection(where).matches(RECORD) is selected


@pytest.mark.parametrize(
    ("where", "named"),
    [
        ("colour=red", "colour"),
        ("state=finished", "'state=finished': there is no state"),
        ("state<completed", "takes = !="),
        ("stage.painter=done", "there is no stage painter"),
        ("stage.ocr=over", "there is no stage state"),
        ("version.ocr<new", "made of numbers"),
        ("submitted=2026-01-01", "takes < <= > >="),
        ("submitted>=tomorrow", "is no date"),
        ("id=7", "not an image id"),
        ("text=hello", "takes ~"),
        ("label=traffic light", "double quotes"),
        ("owner = anna", "'owner'"),
        ("owner=anna and", "a term is missing"),
        ("owner=anna or owner=bert", "'or' is not `and`"),
        ('label="bus', "not closed"),
        ("ocr", "is not KEY=VALUE"),
        ("version=2", "there is no key version"),
        ("x" * 2001, "more than 2000"),
    ],
)
def test_an_invalid_term_is_named(where: str, named: str) -> None:
    """The error names the invalid term and what is allowed."""
    with pytest.raises(WrongFilter) as caught:
        read_selection(where)
    assert named in str(caught.value)


WORDS = st.sampled_from(
    ["and", "AND", "state=", "state=completed", "version.ocr<", "submitted>=", '"', "stage.", "=", "~", "²", "id=", " "]
)


@given(st.lists(WORDS | st.text(max_size=6), max_size=8).map("".join) | st.text(max_size=60))
@example("version.ocr<" + "9" * 400)
@example("submitted>=²")
def test_any_text_is_a_filter_or_an_error(where: str) -> None:
    """The parser returns a selection or raises WrongFilter with a message."""
    try:
        selection = read_selection(where)
    except WrongFilter as error:
        assert str(error)
    else:
        assert isinstance(selection, Selection)
        assert selection.matches(RECORD) in (True, False)


def test_a_single_state_narrows_the_scan() -> None:
    """A filter for one state sets `state`, so that the read model skips other states."""
    assert read_selection("owner=anna and state=failed").state is ImageState.FAILED
    assert read_selection("state=failed and state=completed").state is None
    assert read_selection("state!=failed").state is None
