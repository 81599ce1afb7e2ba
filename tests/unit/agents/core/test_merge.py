"""Facts merge to the same record in any order."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import JsonValue

from agents.core.merge import decide, learn, outranks, required_stages, to_blame
from schemas.events.facts import Fact
from schemas.values import ANALYSIS_STAGES, DEFAULT_STAGES, REQUIRED_STAGES, ImageState, Profile, StageState
from streams.read_model.records import ImageRecord
from tests.support.facts import Facts

IMAGE = "0190a1b2-0000-7000-8000-00000000000a"
FACTS = Facts(IMAGE)
DONE, SKIPPED, FAILED, REJECTED, PENDING = (
    StageState.DONE, StageState.SKIPPED, StageState.FAILED, StageState.REJECTED, StageState.PENDING,
)  # fmt: skip
ALL_DONE = dict.fromkeys(REQUIRED_STAGES, DONE)

EVERY: list[Fact] = [
    *FACTS.all(),
    FACTS.sanitized(source_url="https://example.org/x.jpg"),
    FACTS.refused(),
    FACTS.refused("fetcher"),
    *(FACTS.failed(stage) for stage in ("fetcher", *REQUIRED_STAGES)),
    *(FACTS.skipped(stage) for stage in ANALYSIS_STAGES),
]

SOONER, LATER = Facts(IMAGE, run=5), Facts(IMAGE, run=9)
RERUNS: list[Fact] = [
    SOONER.text("sooner"), LATER.text("later"), SOONER.detected("cat"), LATER.embedded([0.0, 1.0] + [0.0] * 510),
    *(facts.failed(stage) for facts in (SOONER, LATER) for stage in ANALYSIS_STAGES),
    *(facts.skipped(stage) for facts in (SOONER, LATER) for stage in ANALYSIS_STAGES),
    *(facts.refused(stage) for facts in (FACTS, SOONER, LATER) for stage in ANALYSIS_STAGES),
]  # fmt: skip

Stages = dict[str, tuple[StageState, str | None, int]]


def fold(facts: list[Fact]) -> tuple[dict[str, JsonValue], Stages]:
    """Merge facts as the indexer does."""
    keys: dict[str, JsonValue] = {}
    stages: Stages = {}
    for fact in facts:
        learned = learn(fact)
        old = stages.get(learned.stage)
        if outranks(learned.state, old[0] if old else None, run=fact.run, known_run=old[2] if old else 0):
            keys.update(learned.keys)
            stages[learned.stage] = (learned.state, learned.code, fact.run)
            stages.update(dict.fromkeys(learned.also_done, (DONE, None, 0)))
    return keys, stages


def states(stages: Stages) -> dict[str, StageState]:
    return {name: found[0] for name, found in stages.items()}


@given(
    st.lists(st.sampled_from([f for f in EVERY if f is not EVERY[0]]), min_size=1, max_size=14).flatmap(
        lambda facts: st.tuples(st.just(facts), st.permutations([*facts, *facts[:3]]))
    )
)
def test_order_and_repetition_do_not_matter(both: tuple[list[Fact], list[Fact]]) -> None:
    """Any facts of one image merge to the same stages, keys and state, in any order and repeated."""
    one, other = fold(both[0]), fold(both[1])
    assert one[1] == other[1]
    assert one[0] == other[0]


@given(st.permutations(EVERY))
def test_an_image_completes_when_all_stages_are_done(facts: list[Fact]) -> None:
    """An image whose stages are finally all done completes, however often they failed or were skipped before."""
    _, stages = fold(facts)
    assert decide(REQUIRED_STAGES, states(stages)) is ImageState.COMPLETED


@given(
    st.lists(st.sampled_from([*EVERY[1:], *RERUNS]), min_size=1, max_size=16).flatmap(
        lambda facts: st.tuples(st.just(facts), st.permutations([*facts, *facts[:3]]))
    )
)
def test_reruns_commute_too(both: tuple[list[Fact], list[Fact]]) -> None:
    """Facts of several runs merge to the same stages and keys, in any order and repeated."""
    assert fold(both[0]) == fold(both[1])


@given(
    st.sampled_from([FACTS.all(), [*FACTS.all()[:-1], FACTS.skipped("embedder")]]),
    st.lists(st.sampled_from(RERUNS).filter(lambda fact: fact.run > 0), max_size=12),
)
def test_a_rerun_keeps_an_image_completed(first: list[Fact], reruns: list[Fact]) -> None:
    """A completed image stays completed at every step, whatever its rerun stages return."""
    for count in range(len(reruns) + 1):
        keys, stages = fold([*first, *reruns[:count]])
        assert decide(DEFAULT_STAGES, states(stages)) is ImageState.COMPLETED
        assert keys["renditions"] == fold(first)[0]["renditions"]


@pytest.mark.parametrize(
    ("facts", "text", "run"),
    [
        ([FACTS.text("first"), SOONER.text("sooner")], "sooner", 5),
        ([LATER.text("later"), SOONER.text("sooner"), FACTS.text("first")], "later", 9),
        ([SOONER.text("sooner"), LATER.failed("ocr")], "sooner", 5),
        ([FACTS.text("first"), LATER.skipped("ocr")], "first", 0),
        ([LATER.failed("ocr"), FACTS.text("first")], "first", 0),
        ([FACTS.failed("ocr"), LATER.failed("ocr")], None, 9),
    ],
)
def test_which_run_is_kept(facts: list[Fact], text: str | None, run: int) -> None:
    """The latest successful run is kept; an unsuccessful one never replaces a successful one."""
    keys, stages = fold(facts)
    assert (keys.get("text"), stages["ocr"][2]) == (text, run)


def test_every_key_is_one_of_the_record() -> None:
    """The keys of a fact are fields of the record, which accepts their values."""
    for fact in EVERY:
        keys = learn(fact).keys
        assert keys.keys() <= ImageRecord.model_fields.keys(), fact.type
        ImageRecord.model_validate({"image_id": IMAGE, "owner": "anna", "generation": 1} | dict(keys))


def test_keys_of_facts() -> None:
    """Each fact sets its stage's state and its own keys."""
    sanitized, text, detected, embedded, skipped, refused = (
        learn(fact)
        for fact in (
            FACTS.sanitized(), FACTS.text(), FACTS.detected("person", "bus", "person"), FACTS.embedded(),
            FACTS.skipped("ocr"), FACTS.refused(),
        )
    )  # fmt: skip
    assert (sanitized.stage, sanitized.state, sanitized.keys["width"]) == ("sanitizer", DONE, 30)
    assert (sanitized.keys["filename"], sanitized.keys["context"]) == ("me.jpg", {"note": "private"})
    assert (text.keys["text"], text.result is not None) == ("Hello world", True)
    assert detected.keys["labels"] == ["bus", "person"]
    assert embedded.vector is not None
    assert embedded.vector[:2] == [1.0, 0.0]
    assert (skipped.state, skipped.code) == (SKIPPED, "model-unavailable")
    assert (refused.state, refused.code, refused.keys["bucket"]) == (REJECTED, "corrupt-image", "trip")


@pytest.mark.parametrize(
    ("stages", "state"),
    [
        ({}, ImageState.PROCESSING),
        ({"sanitizer": DONE}, ImageState.PROCESSING),
        (ALL_DONE, ImageState.COMPLETED),
        (ALL_DONE | {"ocr": SKIPPED, "embedder": SKIPPED}, ImageState.COMPLETED),
        (ALL_DONE | {"ocr": FAILED}, ImageState.FAILED),
        (ALL_DONE | {"ocr": FAILED, "resizer": REJECTED}, ImageState.FAILED),
        (ALL_DONE | {"ocr": REJECTED}, ImageState.REJECTED),
        ({"sanitizer": DONE, "ocr": FAILED}, ImageState.PROCESSING),
        ({"ocr": FAILED}, ImageState.PROCESSING),
        ({"sanitizer": REJECTED}, ImageState.REJECTED),
        ({"sanitizer": FAILED}, ImageState.FAILED),
        ({"fetcher": REJECTED}, ImageState.REJECTED),
        ({"fetcher": FAILED}, ImageState.FAILED),
        ({"fetcher": DONE}, ImageState.PROCESSING),
        ({"fetcher": FAILED} | ALL_DONE, ImageState.COMPLETED),
        ({"fetcher": FAILED, "sanitizer": DONE}, ImageState.PROCESSING),
        (dict.fromkeys(ANALYSIS_STAGES, DONE), ImageState.PROCESSING),
    ],
)
def test_state_of_an_image(stages: dict[str, StageState], state: ImageState) -> None:
    """An image ends when all required stages have ended, or when it could not be fetched or sanitized."""
    assert decide(REQUIRED_STAGES, stages) is state


def test_only_required_stages_decide() -> None:
    """The profile's stages and the sanitizer decide; other stages do not."""
    required = required_stages(Profile(stages=("ocr",)))
    assert required == ("sanitizer", "ocr")
    assert decide(required, {"sanitizer": DONE, "ocr": DONE, "detector": FAILED}) is ImageState.COMPLETED
    assert decide(required_stages(Profile(stages=())), {"sanitizer": DONE}) is ImageState.COMPLETED


def test_the_first_failed_stage_sets_the_error() -> None:
    """An image's error is that of the first stage that rejected or failed it."""
    assert to_blame(ImageState.FAILED, REQUIRED_STAGES, ALL_DONE | {"embedder": FAILED, "ocr": FAILED}) == "ocr"
    assert to_blame(ImageState.REJECTED, REQUIRED_STAGES, {"sanitizer": REJECTED}) == "sanitizer"
    assert to_blame(ImageState.FAILED, REQUIRED_STAGES, {"fetcher": FAILED}) == "fetcher"
    assert to_blame(ImageState.COMPLETED, REQUIRED_STAGES, ALL_DONE | {"ocr": SKIPPED}) is None
