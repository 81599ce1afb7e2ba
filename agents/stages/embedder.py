"""embedder: computes the CLIP vector (512 float32, unit length) of a sanitized master, for search by meaning.

Skips, with the reason on the image, when the weights are unavailable. Refuses no image.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image
from pydantic import Field, JsonValue

from agents.core.embed import Floats, check_distinct, prepare
from agents.models.clip_encoder import ClipEncoder, find_clip
from agents.models.loading import Loaded, loading, open_master, read_master
from schemas.events.facts import ImageEmbedded, ImageSanitized
from schemas.http.history import LineageKind
from schemas.stored.results import ImageEmbedding
from schemas.values import ModelRef, Vector
from streams import topics
from streams.errors import engine_errors
from streams.object_store.protocol import FileStore
from streams.process.settings_checks import check_one_clip
from streams.settings import CLIP_ARCHITECTURE, CLIP_MODEL
from streams.stage import Announcement, Deployment, Emit, Once, Resources, Skip, Stage, StageSettings, fact_fields


class EmbedderSettings(StageSettings):
    """Limits of the embedder; DARKROOM_EMBEDDER__…"""

    concurrency: int = Field(16, ge=1, description="events worked on at once; at least batch_size")
    buffer: int = Field(64, ge=1, description="events fetched ahead")
    batch_size: int = Field(8, ge=1, description="most images per call of the model")
    weights: str | None = Field(
        None, description="replaced by DARKROOM_MODELS__CLIP_WEIGHTS, from which it must not differ"
    )
    architecture: str = Field(
        CLIP_ARCHITECTURE, description="replaced by DARKROOM_MODELS__CLIP_ARCHITECTURE, from which it must not differ"
    )
    required: bool = Field(False, description="refuse to start without the model, instead of skipping")
    decoders: int = Field(2, ge=1, description="masters decoded at once")


@dataclass(frozen=True, slots=True)
class Tools:
    """The object store, the encoder if available, and the decoding threads."""

    files: FileStore
    encoder: Loaded[ClipEncoder]
    threads: ThreadPoolExecutor


def _build(settings: EmbedderSettings, resources: Resources) -> ClipEncoder:
    models = resources.settings.models
    encoder = ClipEncoder(find_clip(models), models)
    _check(encoder)
    encoder.encode(np.zeros((settings.batch_size, 3, 224, 224), np.float32))  # the largest batch, to warm up
    return encoder


def _check(encoder: ClipEncoder) -> None:
    """Raise Collapsed unless two drawn images get distinct vectors."""
    golden = (Image.linear_gradient("L"), Image.effect_mandelbrot((256, 256), (-3, -2.5, 2, 2.5), 100))
    check_distinct(encoder.encode_images(golden))


@asynccontextmanager
async def open_tools(settings: EmbedderSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Load the encoder and check it on two drawn images. Raises NotReady if search would use another model."""
    check_one_clip(resources.settings.models, "EMBEDDER", settings)
    with ThreadPoolExecutor(settings.decoders, thread_name_prefix="embedder") as threads:
        async with loading(
            "embedder",
            CLIP_MODEL,
            lambda: _build(settings, resources),
            resources,
            required=settings.required,
            describe=lambda found: f"{found.weights.name} {found.weights.sha256[:12]} ({found.backend})",
        ) as encoder:
            yield Tools(resources.files, encoder, threads)


async def _prepared(event: ImageSanitized, tools: Tools) -> Floats:
    data = await read_master(tools.files, event.image.master.key)

    def work() -> Floats:
        image = open_master(data)
        with engine_errors("embedder"):
            return prepare(image)

    return await asyncio.get_running_loop().run_in_executor(tools.threads, work)


async def embed(events: Sequence[ImageSanitized], tools: Tools) -> Sequence[ImageEmbedding | Skip | Exception]:
    """Return one vector per image; an unreadable image fails on its own."""
    encoder = tools.encoder.model
    if encoder is None:
        return tools.encoder.skips(len(events))
    prepared = await asyncio.gather(*(_prepared(event, tools) for event in events), return_exceptions=True)
    good = [one for one in prepared if not isinstance(one, BaseException)]
    loop = asyncio.get_running_loop()
    with engine_errors("embedder"):
        vectors = iter(await loop.run_in_executor(tools.threads, encoder.encode, np.stack(good)) if good else ())
    model = ModelRef(name=encoder.weights.name, sha256=encoder.weights.sha256, backend=encoder.backend)
    answers: list[ImageEmbedding | Skip | Exception] = []
    for one in prepared:
        if isinstance(one, Exception):
            answers.append(one)
        elif isinstance(one, BaseException):
            raise one
        else:
            answers.append(ImageEmbedding(vector=Vector.of(next(vectors).tolist()), model=model))
    return answers


async def probe(tools: Tools) -> None:
    """Let the encoder tell two drawn images apart, and write to the object store; raise what fails."""
    if tools.encoder.model is not None:
        await asyncio.get_running_loop().run_in_executor(tools.threads, _check, tools.encoder.model)
    await tools.files.check()


def _parameters(event: ImageSanitized, tools: Tools) -> Mapping[str, JsonValue]:
    encoder = tools.encoder.model
    if encoder is None:
        return {"weights": None}
    return {"weights": encoder.weights.sha256, "backend": encoder.backend, "architecture": encoder.architecture}


def _announce(event: ImageSanitized, result: ImageEmbedding, known: Announcement) -> Emit:
    fact = ImageEmbedded(
        **fact_fields(event),
        report=known.report,
        vector=result.vector,
        model=result.model,
    )
    return Emit(((topics.FACTS, fact),))


STAGE: Stage[ImageSanitized, Tools, ImageEmbedding] = Stage(
    name="embedder",
    version="1",
    consumes=(topics.SANITIZED,),
    emits=(topics.FACTS,),
    settings=EmbedderSettings,
    open=open_tools,
    process_batch=embed,
    probe=probe,
    once=Once(
        result=ImageEmbedding, input=lambda event: event.image.master, parameters=_parameters, announce=_announce
    ),
    lineage=LineageKind.VECTOR,
    deployment=Deployment(cpu="1", memory="1536Mi", memory_limit="3Gi", lag_per_replica=300, models=True),
)
