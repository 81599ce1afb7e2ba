"""Parameters of a profile: which ones a stage refuses, and the sentence the image's owner reads."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from pydantic import Field, JsonValue

from agents.stages.detector import STAGE as DETECTOR
from agents.stages.indexer import STAGE as INDEXER
from agents.stages.ocr import STAGE as OCR
from agents.stages.resizer import STAGE as RESIZER
from schemas.values import STAGES, ErrorCode, Profile
from streams.runtime.profile_parameters import refused_parameters
from streams.stage import Stage, StageParameters
from tests.support.stage_kit import echo_stage, uploaded


class Sharpness(StageParameters):
    """The parameters of a test stage."""

    level: int = Field(1, ge=0, le=9)
    mode: str = "plain"


PLAIN = echo_stage()
TUNABLE = replace(PLAIN, parameters=Sharpness)
Parameters = dict[str, dict[str, JsonValue]]


@pytest.mark.parametrize(
    "parameters",
    [{}, {"sanitizer": {}}, {"sanitizer": {"level": 9}}, {"ocr": {"anything": "ocr itself refuses"}}],
)
def test_a_stage_accepts_its_own_parameters(parameters: Parameters) -> None:
    """Parameters of other stages are for these stages to refuse."""
    assert refused_parameters(TUNABLE, uploaded(profile=Profile(parameters=parameters))) is None


@pytest.mark.parametrize(
    ("stage", "parameters", "message"),
    [
        (
            TUNABLE,
            {"painter": {}},
            f"profile.parameters names the stage 'painter'; the stages are {', '.join(STAGES)}.",
        ),
        (PLAIN, {"sanitizer": {"level": 1}}, "profile.parameters: sanitizer takes no parameters."),
        (
            TUNABLE,
            {"sanitizer": {"speed": 1}},
            "profile.parameters.sanitizer.speed is no parameter; sanitizer takes level, mode.",
        ),
        (
            TUNABLE,
            {"sanitizer": {"level": 10}},
            "profile.parameters.sanitizer.level: Input should be less than or equal to 9.",
        ),
    ],
)
def test_other_parameters_are_refused_with_a_sentence(
    stage: Stage[Any, Any, Any], parameters: Parameters, message: str
) -> None:
    """An unknown stage or parameter and a value out of range reject the image; the sentence says what is allowed."""
    refusal = refused_parameters(stage, uploaded(profile=Profile(parameters=parameters)))
    assert refusal is not None
    assert (refusal.code, refusal.message) == (ErrorCode.PARAMETERS_NOT_ALLOWED, message)


def test_the_indexer_records_facts_of_refused_events() -> None:
    """Facts repeat the profile of their event, also when it was refused."""
    assert refused_parameters(INDEXER, uploaded(profile=Profile(parameters={"painter": {}}))) is None


@pytest.mark.parametrize(
    ("stage", "own", "allowed"),
    [
        (RESIZER, {"sides": {"tiny": 32, "thumbnail": 150}}, True),
        (RESIZER, {"sides": {"../x": 32}}, False),
        (RESIZER, {"sides": {"tiny": 0}}, False),
        (RESIZER, {"sides": {"huge": 10_001}}, False),
        (RESIZER, {"sides": {f"s{n}": 10 for n in range(9)}}, False),
        (DETECTOR, {"confidence": 0.9, "classes": ["cat"]}, True),
        (DETECTOR, {"confidence": 1.1}, False),
        (OCR, {"min_confidence": 0.8}, True),
        (OCR, {"policy": "hybrid", "languages": ["de", "zh-Hant"]}, True),
        (OCR, {"policy": "magic"}, False),
        (OCR, {"languages": ["../de"]}, False),
        (OCR, {"languages": ["de"] * 9}, False),
        (DETECTOR, {"weights": "other.pt"}, False),
    ],
)
def test_the_parameters_of_the_analysis_stages(
    stage: Stage[Any, Any, Any], own: dict[str, JsonValue], allowed: bool
) -> None:
    """Sizes, confidence, classes, engines and languages can be chosen per image; weights cannot."""
    event = uploaded(profile=Profile(parameters={stage.name: own}))
    assert (refused_parameters(stage, event) is None) is allowed
