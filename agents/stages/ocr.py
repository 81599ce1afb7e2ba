"""ocr: reads the text of a sanitized master: lines with polygon, confidence, engine and language, in reading order.

Policies: `auto` (Tesseract, then EasyOCR where Tesseract's confidence is low), `hybrid` (both, merged), `tesseract`,
`easyocr`. If one of two engines is missing, the other reads alone and health reports it; without any, the stage skips.
Rejects no image; no text is a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from PIL import Image
from pydantic import Field, JsonValue

from agents.core.read_text import mean_confidence
from agents.models.loading import Loaded, loading, open_master
from agents.models.ocr_engines import Reading, Rules, open_engines
from schemas.events.facts import TEXT_LIMIT, ImageSanitized, TextRead
from schemas.http.history import LineageKind
from schemas.stored.results import ReadText
from streams import topics
from streams.errors import ObjectGone, engine_errors
from streams.object_store.protocol import FileStore, ObjectMissing
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


class OcrSettings(StageSettings):
    """Limits of the OCR agent; DARKROOM_OCR__…"""

    concurrency: int = Field(4, ge=1, description="events worked on at once")
    deadline_s: float = Field(180.0, gt=0, description="seconds one try may take")
    policy: Literal["auto", "hybrid", "tesseract", "easyocr"] = Field("auto", description="which engines read what")
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="ISO 639-1 codes, or Tesseract's names")
    min_confidence: float = Field(0.3, ge=0, le=1, description="lines an engine is less sure of are dropped")
    sure: float = Field(0.6, ge=0, le=1, description="auto: Tesseract's lines below this may be read again")
    max_side: int = Field(4096, ge=256, description="pixels; a larger image is read scaled down to this")
    probe_side: int = Field(736, ge=256, description="pixels of the longest side EasyOCR looks for text at first")
    page_timeout_s: float = Field(60.0, gt=0, description="seconds Tesseract may take for one image")
    readers: int = Field(2, ge=1, description="images read at once")
    required: bool = Field(False, description="refuse to start without an engine of the policy, instead of skipping")


class OcrParameters(StageParameters):
    """What a profile may ask."""

    min_confidence: float | None = Field(None, ge=0, le=1, description="in place of the setting of this name")


@dataclass(frozen=True, slots=True)
class Tools:
    """The object store, the engines if any is available, and threads for reading."""

    files: FileStore
    reading: Loaded[Reading]
    settings: OcrSettings
    threads: ThreadPoolExecutor


def _rules(settings: OcrSettings) -> Rules:
    return Rules(
        policy=settings.policy,
        languages=settings.languages,
        min_confidence=settings.min_confidence,
        sure=settings.sure,
        max_side=settings.max_side,
        probe_side=settings.probe_side,
        page_timeout_s=settings.page_timeout_s,
        all_engines=settings.required,
    )


@asynccontextmanager
async def open_tools(settings: OcrSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Load the engines of the policy and check each on a drawn word."""
    models = resources.settings.models
    with ThreadPoolExecutor(settings.readers, thread_name_prefix="ocr") as threads:
        async with loading(
            "ocr",
            settings.policy,
            lambda: open_engines(models, _rules(settings)),
            resources,
            required=settings.required,
            lacks=lambda reading: "; ".join(reading.missing),
        ) as reading:
            yield Tools(resources.files, reading, settings, threads)


async def read_text(event: ImageSanitized, tools: Tools) -> ReadText | Skip:
    """Return the text of an image."""
    reading = tools.reading.model
    if reading is None:
        return tools.reading.skips(1)[0]
    try:
        data = await tools.files.get(event.image.master.key)
    except ObjectMissing as error:
        raise ObjectGone(event.image.master.key) from error

    asked = replace(reading, rules=replace(reading.rules, min_confidence=_min_confidence(event, tools)))

    def work() -> ReadText:
        image: Image.Image = open_master(data)
        with engine_errors("ocr"):
            spans = asked.read(image)
        content = "\n".join(span.text for span in spans)
        return ReadText(content=content, spans=tuple(spans), policy=tools.settings.policy, engines=reading.engines)

    return await asyncio.get_running_loop().run_in_executor(tools.threads, work)


async def probe(tools: Tools) -> None:
    """Let each engine read a drawn word, and write to the object store; raise what fails."""
    if tools.reading.model is not None:
        await asyncio.get_running_loop().run_in_executor(tools.threads, tools.reading.model.check)
    await tools.files.check()


def _parameters(event: ImageSanitized, tools: Tools) -> Mapping[str, JsonValue]:
    reading = tools.reading.model
    chosen = tools.settings.model_dump(
        mode="json", include={"policy", "languages", "min_confidence", "sure", "max_side", "probe_side"}
    )
    chosen["min_confidence"] = _min_confidence(event, tools)
    return {**chosen, "engines": [e.model_dump() for e in reading.engines] if reading is not None else []}


def _min_confidence(event: ImageSanitized, tools: Tools) -> float:
    asked = OcrParameters.of(event, "ocr").min_confidence
    return tools.settings.min_confidence if asked is None else asked


def _announce(event: ImageSanitized, result: ReadText, known: Announcement) -> Emit:
    fact = TextRead(
        **fact_fields(event),
        report=known.report,
        content=result.content[:TEXT_LIMIT],
        span_count=len(result.spans),
        mean_confidence=mean_confidence(result.spans),
        result=known.result,
    )
    return Emit(((topics.FACTS, fact),))


STAGE: Stage[ImageSanitized, Tools, ReadText] = Stage(
    name="ocr",
    version="1",
    consumes=(topics.SANITIZED,),
    emits=(topics.FACTS,),
    settings=OcrSettings,
    parameters=OcrParameters,
    open=open_tools,
    process=read_text,
    probe=probe,
    once=Once(result=ReadText, input=lambda event: event.image.master, parameters=_parameters, announce=_announce),
    lineage=LineageKind.TEXT,
    deployment=Deployment(cpu="1", memory="1536Mi", memory_limit="3Gi", lag_per_replica=30, models=True),
)
