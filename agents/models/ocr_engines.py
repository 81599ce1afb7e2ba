"""The available engines of an OCR policy, combined into one reader."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import structlog
from PIL import Image, ImageDraw, ImageFont

from agents.core.read_text import TextReader, mean_confidence, read_auto, read_hybrid, scaled
from agents.models.easyocr_reader import EasyocrReader, find_easyocr
from agents.models.tesseract_reader import TesseractReader
from agents.models.weights import Unavailable, WrongAnswer
from schemas.values import ModelRef, TextSpan
from streams.settings import ModelsSettings
from streams.telemetry import metrics

_GOLDEN = "DARKROOM"


@dataclass(frozen=True, slots=True)
class Rules:
    """How text is read; see agents.stages.ocr.OcrSettings for each field."""

    policy: str
    languages: tuple[str, ...] = ("en",)
    min_confidence: float = 0.3
    sure: float = 0.6
    max_side: int = 4096
    probe_side: int = 736
    page_timeout_s: float = 60.0
    all_engines: bool = False  # unavailable as a whole when one of the policy's engines is


@dataclass(frozen=True, slots=True)
class Reading:
    """The available engines. Thread-safe."""

    rules: Rules
    tesseract: TesseractReader | None
    easyocr: EasyocrReader | None
    engines: tuple[ModelRef, ...]
    missing: tuple[str, ...] = ()

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return the text of an image in reading order, polygons in its pixels. Drops blank and doubtful lines."""
        longest = max(image.size)
        factor = 1.0
        if longest > self.rules.max_side:
            factor = longest / self.rules.max_side
            image = image.resize((max(round(image.width / factor), 1), max(round(image.height / factor), 1)))
        spans = [span for span in self._read(image) if span.confidence >= self.rules.min_confidence]
        return scaled(spans, factor)

    def check(self) -> None:
        """Let each engine read a drawn word. Raises WrongAnswer."""
        for engine, reader in (("tesseract", self.tesseract), ("easyocr", self.easyocr)):
            if reader is not None:
                _check_golden(engine, reader)

    def _read(self, image: Image.Image) -> list[TextSpan]:
        if self.tesseract is not None and self.easyocr is not None:
            if self.rules.policy == "hybrid":
                return read_hybrid(image, self.tesseract, self.easyocr)
            return read_auto(image, self.tesseract, self.easyocr, sure=self.rules.sure)
        alone: TextReader | None = self.tesseract or self.easyocr
        return alone.read(image) if alone is not None else []


def open_engines(models: ModelsSettings, rules: Rules) -> Reading:
    """Load the engines of the policy and check each on a drawn word.

    Raises Unavailable when none (with `all_engines`: not every one) is available, WrongAnswer when one misreads it.
    """
    tesseract: TesseractReader | None = None
    easyocr: EasyocrReader | None = None
    engines: list[ModelRef] = []
    missing: list[str] = []
    if rules.policy != "easyocr":
        try:
            tesseract = TesseractReader(rules.languages, timeout_s=rules.page_timeout_s)
            engines.append(_tesseract_ref(tesseract))
            _check_golden("tesseract", tesseract)
        except (Unavailable, ModuleNotFoundError) as error:
            missing.append(_unavailable("tesseract", error))
    if rules.policy != "tesseract":
        try:
            easyocr = EasyocrReader(*find_easyocr(models, rules.languages), models, probe_side=rules.probe_side)
            engines += [ModelRef(name=w.name, sha256=w.sha256, backend=easyocr.backend) for w in easyocr.weights]
            _check_golden("easyocr", easyocr)
        except (Unavailable, ModuleNotFoundError) as error:
            missing.append(_unavailable("easyocr", error))
    if not engines or (missing and rules.all_engines):
        raise Unavailable("; ".join(missing))
    return Reading(rules, tesseract, easyocr, tuple(engines), tuple(missing))


def _unavailable(engine: str, error: Exception) -> str:
    metrics.MODEL_AVAILABLE.labels("ocr", engine).set(0)
    structlog.get_logger().warning("OCR engine unavailable", stage="ocr", model=engine, reason=str(error))
    return f"{engine}: {error}"


def _tesseract_ref(reader: TesseractReader) -> ModelRef:
    """Return Tesseract's model reference: its version and languages identify its installed weights."""
    named = f"tesseract {reader.version} {reader.languages}"
    return ModelRef(name=named, sha256=hashlib.sha256(named.encode()).hexdigest(), backend="tesseract")


def _check_golden(engine: str, reader: TextReader) -> None:
    """Let a reader read a drawn word. Raises WrongAnswer if it reads anything else."""
    picture = Image.new("RGB", (420, 120), "white")
    ImageDraw.Draw(picture).text((40, 30), _GOLDEN, fill="black", font=ImageFont.load_default(56))
    spans = reader.read(picture)
    read = "".join(span.text for span in spans).upper().replace(" ", "")
    if _GOLDEN not in read or mean_confidence(spans) <= 0:
        raise WrongAnswer(f"{engine} reads {read[:40]!r} instead of {_GOLDEN!r}")
    metrics.MODEL_AVAILABLE.labels("ocr", engine).set(1)
