"""ocr: reads the text of a sanitized master: lines with polygon, confidence, engine and language, in reading order.

Policies: `auto` and `ppocr` (PP-OCR, and Tesseract's packs for the scripts it does not know; `auto` without PP-OCR is
`cascade`), `cascade` (Tesseract, then EasyOCR where Tesseract's confidence is low), `hybrid` (both, merged, and each by
itself), `tesseract`, `easyocr`. A profile may name another policy and the languages; their engines are loaded when they
are first asked for. If one of two engines is missing, the other reads alone and health reports it; without any, the
stage skips. Of a document every page is read, one at a time. Rejects no image; no text is a result.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Annotated, Literal

from pydantic import Field, JsonValue, StringConstraints

from agents.core.read_text import mean_confidence
from agents.core.text.document import Sheet, digest_of, left_out, sheets_of, text_page
from agents.models.loading import Loaded, loading, open_master, read_master
from agents.models.ocr_engines import Answer, Engines, Reading, Rules, manifest_engines
from agents.models.weights import Unavailable
from schemas.events.facts import TEXT_LIMIT, ImageSanitized, TextRead
from schemas.http.history import LineageKind
from schemas.stored.results import ReadText, SanitizedImage, TextPage
from schemas.values import ErrorCode, ModelRef, ObjectRef
from streams import topics
from streams.errors import engine_errors
from streams.object_store.protocol import FileStore
from streams.stage import (
    Announcement,
    Deployment,
    Emit,
    Once,
    Resources,
    Skip,
    Stage,
    StageParameters,
    StageSettings,
    fact_fields,
)

_LARGE = 12_000_000  # pixels
Policy = Literal["auto", "ppocr", "cascade", "hybrid", "tesseract", "easyocr"]
Language = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,8}([_-][A-Za-z0-9]{1,8})*$")]


class OcrSettings(StageSettings):
    """Limits of the OCR agent; DARKROOM_OCR__…"""

    concurrency: int = Field(4, ge=1, description="events worked on at once")
    deadline_s: float = Field(
        220.0, gt=0, description="seconds one try may take; a document's pages that do not fit are left out"
    )
    max_pages: int = Field(50, ge=1, description="pages read of a document, the first ones")
    policy: Policy = Field("auto", description="which engines read what")
    languages: tuple[str, ...] = Field(
        ("en",),
        min_length=1,
        description="ISO 639-1 codes, or Tesseract's names; with the default, `auto` finds script and language itself",
    )
    bucket_languages: dict[str, tuple[Language, ...]] = Field(
        {}, description="languages of a bucket's images, in place of the setting `languages`; a profile's come first"
    )
    packs: tuple[str, ...] = Field(
        ("ko", "ru", "el", "ar", "he", "hi", "th"),
        description="languages whose Tesseract packs read scripts that PP-OCR does not know; of a script, the first",
    )
    runtime: Literal["openvino", "onnxruntime", "cuda"] = Field("openvino", description="what runs PP-OCR")
    min_confidence: float = Field(0.3, ge=0, le=1, description="lines an engine is less sure of are dropped")
    sure: float = Field(0.6, ge=0, le=1, description="auto: Tesseract's lines below this may be read again")
    max_side: int = Field(4096, ge=256, description="pixels; a larger image is read scaled down to this")
    probe_side: int = Field(736, ge=256, description="pixels of the longest side EasyOCR looks for text at first")
    page_timeout_s: float = Field(60.0, gt=0, description="seconds Tesseract may take for one image or page")
    readers: int = Field(2, ge=1, description="images read at once")
    required: bool = Field(False, description="refuse to start without an engine of the policy, instead of skipping")


class OcrParameters(StageParameters):
    """What a profile may ask."""

    min_confidence: float | None = Field(None, ge=0, le=1, description="in place of the setting of this name")
    policy: Policy | None = Field(None, description="in place of the setting of this name")
    languages: tuple[Language, ...] = Field((), max_length=8, description="languages the text is in; empty: any")


@dataclass(frozen=True, slots=True)
class Tools:
    """The object store, the engines (those of the setting, if available, are loaded), and threads for reading."""

    files: FileStore
    engines: Engines
    reading: Loaded[Reading]
    settings: OcrSettings
    threads: ThreadPoolExecutor
    large: threading.Lock = field(default_factory=threading.Lock)  # one large image at a time bounds the memory


def _rules(settings: OcrSettings, asked: OcrParameters | None = None, bucket: str = "") -> Rules:
    asked = asked or OcrParameters()
    chosen = settings.languages if settings.languages != OcrSettings().languages else ()
    by_operator = settings.bucket_languages.get(bucket, chosen)
    return Rules(
        policy=asked.policy or settings.policy,
        languages=settings.languages,
        named=asked.languages or by_operator,
        packs=settings.packs,
        runtime=settings.runtime,
        min_confidence=settings.min_confidence if asked.min_confidence is None else asked.min_confidence,
        sure=settings.sure,
        probe_side=settings.probe_side,
        page_timeout_s=settings.page_timeout_s,
        all_engines=settings.required,
    )


def _build(engines: Engines, rules: Rules) -> Reading:
    return engines.reading(rules)


@asynccontextmanager
async def open_tools(settings: OcrSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Load the engines of the policy and check each on a drawn word."""
    engines = Engines(resources.settings.models)
    with ThreadPoolExecutor(settings.readers, thread_name_prefix="ocr") as threads:
        async with loading(
            "ocr",
            settings.policy,
            lambda: _build(engines, _rules(settings)),
            resources,
            required=settings.required,
            lacks=lambda reading: "; ".join(reading.missing),
        ) as reading:
            yield Tools(resources.files, engines, reading, settings, threads)


async def read_text(event: ImageSanitized, tools: Tools) -> ReadText | Skip:
    """Return the text of an image, or of every page of a document."""
    rules = _rules(tools.settings, OcrParameters.of(event, "ocr"), event.bucket)
    usual = tools.reading.model
    if usual is None and not _differs(rules, _rules(tools.settings)):
        return tools.reading.skips(1)[0]
    clock = asyncio.get_running_loop().time
    until = clock() + tools.settings.deadline_s - tools.settings.page_timeout_s  # a page may take that long
    found = list[tuple[TextPage, Answer]]()
    for sheet in sheets_of(event.image, tools.settings.max_pages):
        if found and clock() > until:
            break
        data = await read_master(tools.files, sheet.object.key)
        try:
            work = asyncio.get_running_loop().run_in_executor(tools.threads, _read, tools, rules, sheet, data)
            page, answer, engines = await work
        except Unavailable as error:  # engines or languages of the profile or bucket, which other images do not need
            reason = f"The OCR engine of this profile or bucket is unavailable: {error}"
            return Skip(ErrorCode.MODEL_UNAVAILABLE, reason, reported=True)
        found.append((page, answer))
    pages, first = tuple(page for page, _ in found), found[0][0]
    notes = dict.fromkeys(note for _, answer in found for note in answer.page.notes)
    return ReadText(
        content="\f".join(page.content for page in pages),
        spans=first.spans,
        policy=rules.policy,
        engines=engines,
        blocks=first.blocks,
        rotation=first.rotation,
        tilt=first.tilt,
        notes=(*notes, *left_out(event.image, {page.number for page in pages})),
        readings=found[0][1].readings,
        pages=pages if event.image.pages else (),
    )


def _read(tools: Tools, rules: Rules, sheet: Sheet, data: bytes) -> tuple[TextPage, Answer, tuple[ModelRef, ...]]:
    usual = tools.reading.model
    reading = tools.engines.reading(rules) if usual is None or _differs(rules, usual.rules) else usual
    with tools.large if sheet.width * sheet.height > _LARGE else nullcontext():
        image = open_master(data, largest_side=tools.settings.max_side)
        factor = max(sheet.width / image.width, sheet.height / image.height)
        with engine_errors("ocr"):
            answer = replace(reading, rules=rules).answer(image, factor)
    return text_page(sheet, answer.page), answer, reading.engines


def _differs(rules: Rules, usual: Rules) -> bool:
    return (rules.policy, rules.named) != (usual.policy, usual.named)


async def probe(tools: Tools) -> None:
    """Let each engine read a drawn word, and write to the object store; raise what fails."""
    if tools.reading.model is not None:
        await asyncio.get_running_loop().run_in_executor(tools.threads, tools.reading.model.check)
    await tools.files.check()


def _parameters(event: ImageSanitized, tools: Tools) -> Mapping[str, JsonValue]:
    reading = tools.reading.model
    rules = _rules(tools.settings, OcrParameters.of(event, "ocr"), event.bucket)
    chosen = tools.settings.model_dump(mode="json", include={"languages", "sure", "max_side", "probe_side", "packs"})
    return {
        **chosen,
        **({} if not event.image.pages else _of_document(event.image, tools.settings)),
        "policy": rules.policy,
        "named": list(rules.named),
        "min_confidence": rules.min_confidence,
        # Of another policy than the setting's, the engines are named by their weights in the manifest.
        "engines": [engine.model_dump() for engine in reading.engines]
        if reading is not None and rules.policy == tools.settings.policy
        else manifest_engines(rules),
    }


def _of_document(image: SanitizedImage, settings: OcrSettings) -> Mapping[str, JsonValue]:
    return {"pages": digest_of(image), "max_pages": settings.max_pages, "deadline_s": settings.deadline_s}


def _input(event: ImageSanitized) -> ObjectRef:
    """Return what the text is named by: the master, or the original of a document.

    Documents with the same first page share its master, and must not share the text of the others.
    """
    return event.original if event.image.pages else event.image.master


def _announce(event: ImageSanitized, result: ReadText, known: Announcement) -> Emit:
    spans = [span for page in result.pages for span in page.spans] or result.spans
    fact = TextRead(
        **fact_fields(event),
        report=known.report,
        content=result.content[:TEXT_LIMIT],
        span_count=len(spans),
        mean_confidence=mean_confidence(spans),
        result=known.result,
    )
    return Emit(((topics.FACTS, fact),))


STAGE: Stage[ImageSanitized, Tools, ReadText] = Stage(
    name="ocr",
    version="2",
    consumes=(topics.SANITIZED,),
    emits=(topics.FACTS,),
    settings=OcrSettings,
    parameters=OcrParameters,
    open=open_tools,
    process=read_text,
    probe=probe,
    once=Once(result=ReadText, input=_input, parameters=_parameters, announce=_announce),
    lineage=LineageKind.TEXT,
    deployment=Deployment(cpu="1", memory="1Gi", memory_limit="3Gi", lag_per_replica=30, models=True),
)
