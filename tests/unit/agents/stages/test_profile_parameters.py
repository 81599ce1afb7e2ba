"""What a profile's parameters change: what is reported, and under which name the result is stored."""

from __future__ import annotations

from types import SimpleNamespace

from agents.core.detect import Detection
from agents.stages.detector import STAGE as DETECTOR
from agents.stages.detector import DetectorParameters
from agents.stages.ocr import STAGE as OCR
from agents.stages.ocr import OcrSettings
from schemas.values import Profile
from tests.support.facts import Facts

FOUND = [Detection(label, confidence, 0, 0, 1, 1) for label, confidence in (("cat", 0.9), ("cat", 0.4), ("bus", 0.8))]


def test_a_profile_narrows_the_objects_down() -> None:
    """Only objects of the asked labels and confidence are reported; without parameters all are."""
    event = Facts("0198c0de-7a11-7abc-8def-0123456789ab").sanitized()
    assert DetectorParameters.of(event, "detector").among(FOUND) == FOUND
    profile = Profile(parameters={"detector": {"confidence": 0.5, "classes": ["cat"]}, "ocr": {"min_confidence": 1}})
    asked = DetectorParameters.of(event.model_copy(update={"profile": profile}), "detector")
    assert asked.among(FOUND) == FOUND[:1]


def test_results_of_other_parameters_have_other_names() -> None:
    """A result is reused for equal parameters only, and results without parameters keep their names."""
    plain = Facts("0198c0de-7a11-7abc-8def-0123456789ab").sanitized()
    profile = Profile(parameters={"detector": {"confidence": 0.5}, "ocr": {"min_confidence": 0.9}})
    event = plain.model_copy(update={"profile": profile})
    model = SimpleNamespace(weights=SimpleNamespace(sha256="a" * 64), backend="torch")
    detecting = SimpleNamespace(detector=SimpleNamespace(model=model), thresholds={"confidence": 0.25})
    reading = SimpleNamespace(reading=SimpleNamespace(model=None), settings=OcrSettings())
    assert DETECTOR.once is not None
    assert OCR.once is not None
    named = DETECTOR.once.parameters(plain, detecting)  # type: ignore[arg-type]
    assert named == {"weights": "a" * 64, "backend": "torch", "confidence": 0.25}
    assert DETECTOR.once.parameters(event, detecting) != named  # type: ignore[arg-type]
    assert OCR.once.parameters(plain, reading)["min_confidence"] == 0.3  # type: ignore[arg-type]
    assert OCR.once.parameters(event, reading)["min_confidence"] == 0.9  # type: ignore[arg-type]
