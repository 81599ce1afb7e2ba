"""The available engines of an OCR policy, combined into one reader."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, TypeVar

import structlog
from PIL import Image, ImageDraw, ImageFont
from pydantic import JsonValue

from agents.core.read_text import TextReader, mean_confidence, merge, read_auto
from agents.core.text.languages import with_languages
from agents.core.text.page import Page, content_of, page_of
from agents.models.ppocr_networks import Runtime, open_networks
from agents.models.script_reader import ScriptReader
from agents.models.tesseract_reader import TesseractReader, installed_packs
from agents.models.weights import Unavailable, Weights, WrongAnswer, manifest
from schemas.stored.results import EngineReading
from schemas.values import ModelRef, TextSpan
from streams.settings import ModelsSettings
from streams.telemetry import metrics

if TYPE_CHECKING:  # EasyOCR imports torch: two seconds and 400 MB, for a policy that is not the default
    from agents.models.easyocr_reader import EasyocrReader
    from agents.models.ppocr_engine import PpocrEngine

_GOLDEN = "DARKROOM"
# Policy -> its engines. `auto` without PP-OCR is `cascade`.
POLICIES = {
    "auto": ("ppocr",),
    "ppocr": ("ppocr",),
    "cascade": ("tesseract", "easyocr"),
    "hybrid": ("tesseract", "easyocr"),
    "tesseract": ("tesseract",),
    "easyocr": ("easyocr",),
}
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Rules:
    """How text is read; see agents.stages.ocr.OcrSettings for each field."""

    policy: str
    languages: tuple[str, ...] = ("en",)
    named: tuple[str, ...] = ()  # the languages a caller asked for, as opposed to what is assumed without asking
    packs: tuple[str, ...] = ()
    runtime: Runtime = "openvino"
    min_confidence: float = 0.3
    sure: float = 0.6
    probe_side: int = 736
    page_timeout_s: float = 60.0
    all_engines: bool = False  # unavailable as a whole when one of the policy's engines is


@dataclass(frozen=True, slots=True)
class Answer:
    """The text of an image, and what each engine read by itself where the policy asks for it."""

    page: Page
    readings: tuple[EngineReading, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """The available engines of a policy. Thread-safe."""

    rules: Rules
    tesseract: TesseractReader | None
    easyocr: EasyocrReader | None
    engines: tuple[ModelRef, ...]
    missing: tuple[str, ...] = ()
    ppocr: PpocrEngine | None = None

    def read(self, image: Image.Image) -> list[TextSpan]:
        """Return the lines of an image in reading order; see `answer`."""
        return list(self.answer(image).page.spans)

    def answer(self, image: Image.Image, factor: float = 1.0) -> Answer:
        """Return the text of an image, polygons in its pixels times `factor`. Drops blank and doubtful lines."""
        answer = self._answer(image)
        page = self._checked(answer.page)
        spans = tuple(with_languages(page.spans, self.rules.named))
        page = replace(page, spans=spans, notes=(*page.notes, *self._unknown_languages()))
        return Answer(page.scaled(factor), answer.readings)

    def check(self) -> None:
        """Let each engine read a drawn word. Raises WrongAnswer."""
        for engine in (self.ppocr, self.tesseract, self.easyocr):
            if engine is not None:
                _check_golden(engine)

    def _checked(self, page: Page) -> Page:
        spans = [span for span in page.spans if span.confidence >= self.rules.min_confidence]
        return page if len(spans) == len(page.spans) else page_of(spans, rotation=page.rotation, notes=page.notes)

    def _answer(self, image: Image.Image) -> Answer:
        if self.ppocr is not None:
            return Answer(self.ppocr.page(image, self.rules.named, self.rules.min_confidence))
        if self.tesseract is not None and self.easyocr is not None:
            if self.rules.policy == "hybrid":
                return self._both(image, self.tesseract, self.easyocr)
            return Answer(page_of(read_auto(image, self.tesseract, self.easyocr, sure=self.rules.sure)))
        if self.tesseract is not None:
            return Answer(self.tesseract.page(image))
        return Answer(page_of(self.easyocr.read(image)) if self.easyocr is not None else Page())

    def _both(self, image: Image.Image, tesseract: TextReader, easyocr: TextReader) -> Answer:
        found = {"tesseract": tesseract.read(image), "easyocr": easyocr.read(image)}
        readings = tuple(
            EngineReading(engine=engine, content=content_of(spans), spans=tuple(spans))
            for engine, spans in found.items()
        )
        return Answer(page_of(merge(found["tesseract"], found["easyocr"])), readings)

    def _unknown_languages(self) -> tuple[str, ...]:
        """Return a note for each language a caller named that no engine of the policy reads."""
        if self.ppocr is None:
            return ()
        return tuple(
            f"no installed engine reads the language {language}"
            for language in self.rules.named
            if not self.ppocr.knows(language)
        )


@dataclass(slots=True)
class Engines:
    """Loads engines when they are first needed, each once. Thread-safe."""

    models: ModelsSettings
    _loaded: dict[object, object] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def reading(self, rules: Rules) -> Reading:
        """Return the engines of a policy, each checked on a drawn word.

        Raises Unavailable when none (with `all_engines`: not every one) is available, WrongAnswer when one misreads it.
        """
        with self._lock:
            return self._reading(rules, POLICIES[rules.policy])

    def _reading(self, rules: Rules, wanted: Sequence[str]) -> Reading:
        missing: list[str] = []
        ppocr = self._try("ppocr", wanted, missing, rules, self._ppocr)
        tesseract = self._try("tesseract", wanted, missing, rules, self._tesseract)
        easyocr = self._try("easyocr", wanted, missing, rules, self._easyocr)
        if rules.policy == "auto" and "ppocr" in wanted and ppocr is None and not rules.all_engines:
            instead = self._reading(rules, POLICIES["cascade"])
            return replace(instead, missing=(*missing, *instead.missing))
        engines: list[ModelRef] = []
        if ppocr is not None:
            engines += [_ref(weights, rules.runtime) for weights in ppocr.reader.networks.weights]
            engines += (
                [_tesseract_ref(ppocr.scripts.version, "+".join(ppocr.scripts.languages))]
                if ppocr.scripts is not None
                else []
            )
            unread = [language for language in rules.named if not ppocr.knows(language)]
            if unread and (len(unread) == len(rules.named) or rules.all_engines):
                raise Unavailable(f"no installed engine reads {', '.join(unread)}")
        if tesseract is not None:
            engines.append(_tesseract_ref(tesseract.version, tesseract.languages))
        if easyocr is not None:
            engines += [_ref(weights, easyocr.backend) for weights in easyocr.weights]
        if not engines or (missing and rules.all_engines):
            raise Unavailable("; ".join(missing))
        return Reading(rules, tesseract, easyocr, tuple(engines), tuple(missing), ppocr)

    def _try(
        self, engine: str, wanted: Sequence[str], missing: list[str], rules: Rules, load: Callable[[Rules], T]
    ) -> T | None:
        if engine not in wanted:
            return None
        try:
            return load(rules)
        except (Unavailable, ModuleNotFoundError) as error:
            missing.append(_unavailable(engine, error))
            return None

    def _ppocr(self, rules: Rules) -> PpocrEngine:
        from agents.models.ppocr_engine import PpocrEngine  # noqa: PLC0415
        from agents.models.ppocr_reader import PpocrReader  # noqa: PLC0415

        def load() -> PpocrEngine:
            reader = PpocrReader(open_networks(self.models, rules.runtime))
            return PpocrEngine(reader, _script_reader(rules))

        return self._once(("ppocr", rules.runtime, rules.packs), load)

    def _tesseract(self, rules: Rules) -> TesseractReader:
        languages = rules.named or rules.languages
        return self._once(("tesseract", languages), lambda: TesseractReader(languages, timeout_s=rules.page_timeout_s))

    def _easyocr(self, rules: Rules) -> EasyocrReader:
        from agents.models.easyocr_reader import EasyocrReader, find_easyocr  # noqa: PLC0415

        weights = find_easyocr(self.models, rules.named or rules.languages)
        return self._once("easyocr", lambda: EasyocrReader(*weights, self.models, probe_side=rules.probe_side))

    def _once(self, key: object, load: Callable[[], T]) -> T:
        if key not in self._loaded:
            engine = load()
            _check_golden(engine)  # type: ignore[arg-type]
            self._loaded[key] = engine
        return self._loaded[key]  # type: ignore[return-value]


def open_engines(models: ModelsSettings, rules: Rules) -> Reading:
    """Load the engines of one policy; see Engines.reading."""
    return Engines(models).reading(rules)


def manifest_engines(rules: Rules) -> list[JsonValue]:
    """Return the names of a policy's engines without loading them: weights by their hash, Tesseract by its version."""
    names: list[JsonValue] = []
    for engine in POLICIES[rules.policy]:
        names += [f"{model.name} {model.sha256}" for model in manifest() if model.name.startswith(engine)]
    try:
        version, packs = installed_packs()
    except Unavailable:
        return names
    return [*names, f"tesseract {version} {'+'.join(sorted(packs))}"]


def _script_reader(rules: Rules) -> ScriptReader | None:
    try:
        return ScriptReader(rules.packs, timeout_s=rules.page_timeout_s)
    except Unavailable:
        return None


def _unavailable(engine: str, error: Exception) -> str:
    metrics.MODEL_AVAILABLE.labels("ocr", engine).set(0)
    structlog.get_logger().warning("OCR engine unavailable", stage="ocr", model=engine, reason=str(error))
    return f"{engine}: {error}"


def _ref(weights: Weights, backend: str) -> ModelRef:
    return ModelRef(name=weights.name, sha256=weights.sha256, backend=backend)


def _tesseract_ref(version: str, languages: str) -> ModelRef:
    """Return Tesseract's model reference: its version and languages identify its installed weights."""
    named = f"tesseract {version} {languages}"
    return ModelRef(name=named, sha256=hashlib.sha256(named.encode()).hexdigest(), backend="tesseract")


def _check_golden(reader: TextReader) -> None:
    """Let a reader read a drawn word. Raises WrongAnswer if it reads anything else."""
    picture = Image.new("RGB", (420, 120), "white")
    ImageDraw.Draw(picture).text((40, 30), _GOLDEN, fill="black", font=ImageFont.load_default(56))
    spans = reader.read(picture)
    read = "".join(span.text for span in spans).upper().replace(" ", "")
    if _GOLDEN not in read or mean_confidence(spans) <= 0:
        raise WrongAnswer(f"{reader.name} reads {read[:40]!r} instead of {_GOLDEN!r}")
    metrics.MODEL_AVAILABLE.labels("ocr", reader.name).set(1)
