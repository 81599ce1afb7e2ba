"""detector: finds objects in a sanitized master with YOLO: label, confidence and box.

Skips, with the reason on the image, if the weights are missing. Rejects no image; no object is a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import Field, JsonValue

from agents.core.detect import Detection, as_objects
from agents.models.loading import Loaded, loading, open_master, read_master
from agents.models.yolo_detector import MODEL, Letterboxed, YoloDetector, find_yolo
from schemas.events.facts import ImageSanitized, ObjectsDetected
from schemas.http.history import LineageKind
from schemas.stored.results import DetectedObjects
from schemas.values import ModelRef
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


class DetectorSettings(StageSettings):
    """Limits of the detector; DARKROOM_DETECTOR__…"""

    concurrency: int = Field(16, ge=1, description="events worked on at once; at least batch_size")
    buffer: int = Field(64, ge=1, description="events fetched ahead")
    batch_size: int = Field(8, ge=1, description="most images per call of the model")
    weights: str | None = Field(
        None, description="file in models.dir to use; empty = yolov8n.pt, else the first *yolo*.pt or .onnx there"
    )
    confidence: float = Field(0.25, ge=0, le=1, description="objects the model is less sure of are not reported")
    iou: float = Field(0.7, ge=0, le=1, description="boxes of one class that overlap more are one object")
    classes: tuple[str, ...] = Field((), description="labels to report; empty = all")
    image_size: int = Field(640, ge=32, multiple_of=32, description="pixels of the longest side the model sees")
    max_objects: int = Field(300, ge=1, description="most objects of one image, the most confident ones")
    exact: bool = Field(False, description="float32 also where bfloat16 is faster (OpenVINO; half the speed)")
    required: bool = Field(False, description="refuse to start without the model, instead of skipping")
    decoders: int = Field(2, ge=1, description="masters decoded at once")


class DetectorParameters(StageParameters):
    """What a profile may ask: fewer objects than the settings report."""

    confidence: float = Field(0, ge=0, le=1, description="report only objects the model is at least this sure of")
    classes: tuple[str, ...] = Field((), max_length=100, description="report only these labels; empty = all")

    def among(self, found: Sequence[Detection]) -> list[Detection]:
        """Return the detections to report."""
        sure = (one for one in found if one.confidence >= self.confidence)
        return [one for one in sure if not self.classes or one.label in self.classes]


@dataclass(frozen=True, slots=True)
class Tools:
    """The object store, the detector if it is available, its thresholds, and threads for decoding and inference."""

    files: FileStore
    detector: Loaded[YoloDetector]
    thresholds: Mapping[str, JsonValue]
    threads: ThreadPoolExecutor


def _build(settings: DetectorSettings, resources: Resources) -> YoloDetector:
    models = resources.settings.models
    detector = YoloDetector(
        find_yolo(models, settings.weights),
        models,
        confidence=settings.confidence,
        iou=settings.iou,
        classes=settings.classes,
        image_size=settings.image_size,
        max_objects=settings.max_objects,
        exact=settings.exact,
    )
    detector.check()
    return detector


@asynccontextmanager
async def open_tools(settings: DetectorSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Load the detector and check it on drawn images and, with COCO's classes, on a known photo."""
    thresholds = settings.model_dump(
        mode="json", include={"confidence", "iou", "classes", "image_size", "max_objects", "exact"}
    )
    with ThreadPoolExecutor(settings.decoders, thread_name_prefix="detector") as threads:
        async with loading(
            "detector",
            MODEL,
            lambda: _build(settings, resources),
            resources,
            required=settings.required,
            describe=lambda found: f"{found.weights.name} {found.weights.sha256[:12]} ({found.backend})",
        ) as detector:
            yield Tools(resources.files, detector, thresholds, threads)


async def _prepared(event: ImageSanitized, detector: YoloDetector, tools: Tools) -> Letterboxed:
    data = await read_master(tools.files, event.image.master.key)

    def prepare() -> Letterboxed:
        image = open_master(data)
        with engine_errors("detector"):
            return detector.prepare(image)

    return await asyncio.get_running_loop().run_in_executor(tools.threads, prepare)


async def detect(events: Sequence[ImageSanitized], tools: Tools) -> Sequence[DetectedObjects | Skip | Exception]:
    """Return the objects of each image; an unreadable image fails without affecting the others."""
    detector = tools.detector.model
    if detector is None:
        return tools.detector.skips(len(events))
    prepared = await asyncio.gather(*(_prepared(event, detector, tools) for event in events), return_exceptions=True)
    good = [one for one in prepared if isinstance(one, Letterboxed)]
    loop = asyncio.get_running_loop()
    with engine_errors("detector"):
        found = iter(await loop.run_in_executor(tools.threads, detector.detect, good))
    model = ModelRef(name=detector.weights.name, sha256=detector.weights.sha256, backend=detector.backend)
    answers: list[DetectedObjects | Skip | Exception] = []
    for event, one in zip(events, prepared, strict=True):
        if isinstance(one, Letterboxed):
            reported = DetectorParameters.of(event, "detector").among(next(found))
            objects = as_objects(reported, width=one.width, height=one.height)
            answers.append(DetectedObjects(objects_found=objects, model=model))
        elif isinstance(one, Exception):
            answers.append(one)
        else:
            raise one
    return answers


async def probe(tools: Tools) -> None:
    """Let the detector find what it must find in known images, and write to the object store; raise what fails."""
    if tools.detector.model is not None:
        await asyncio.get_running_loop().run_in_executor(tools.threads, tools.detector.model.check)
    await tools.files.check()


def _parameters(event: ImageSanitized, tools: Tools) -> Mapping[str, JsonValue]:
    detector = tools.detector.model
    if detector is None:
        return {"weights": None}
    asked = event.profile.parameters.get("detector")
    named = {"weights": detector.weights.sha256, "backend": detector.backend, **tools.thresholds}
    return {**named, "asked": asked} if asked else named


def _announce(event: ImageSanitized, result: DetectedObjects, known: Announcement) -> Emit:
    fact = ObjectsDetected(
        **fact_fields(event),
        report=known.report,
        objects=result.objects_found,
        model=result.model,
    )
    return Emit(((topics.FACTS, fact),))


STAGE: Stage[ImageSanitized, Tools, DetectedObjects] = Stage(
    name="detector",
    version="1",
    consumes=(topics.SANITIZED,),
    emits=(topics.FACTS,),
    settings=DetectorSettings,
    parameters=DetectorParameters,
    open=open_tools,
    process_batch=detect,
    probe=probe,
    once=Once(
        result=DetectedObjects, input=lambda event: event.image.master, parameters=_parameters, announce=_announce
    ),
    lineage=LineageKind.OBJECT,
    deployment=Deployment(cpu="1", memory="1536Mi", memory_limit="3Gi", lag_per_replica=200, models=True),
)
