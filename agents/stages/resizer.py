"""The resizer creates the renditions of an image.

In: ImageSanitized. Out: ImageResized, a fact. Stored: one WebP per rendition, beside the master. Refused: nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field, JsonValue

from agents.core.golden_image import GOLDEN_PNG
from agents.core.resize import (
    LARGE_PIXELS,
    WEBP_EFFORT,
    WEBP_EFFORT_LARGE,
    WEBP_QUALITY,
    Size,
    fitted,
    open_master,
    render,
)
from schemas.events.facts import ImageResized, ImageSanitized
from schemas.http.history import LineageKind
from schemas.stored.results import ResizedImage
from schemas.values import RENDITION_SIDES, ErrorCode, ObjectRef, Rendition
from streams import topics
from streams.concurrency.weighted_semaphore import PixelBudget
from streams.errors import Malformed, ObjectGone, engine_errors
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.stage import Announcement, Emit, Once, Resources, Stage, StageParameters, StageSettings, fact_fields

T = TypeVar("T")

MAX_SIDE = 10_000  # pixels a profile may ask for; no master is larger by default
MAX_RENDITIONS = 8  # that a profile may ask for


class ResizerSettings(StageSettings):
    """Which renditions are created, and the limits of concurrent work."""

    sides: dict[str, int] = Field(
        RENDITION_SIDES,
        min_length=1,
        description="rendition name -> pixels of its longest side; never enlarged",
    )
    threads: int = Field(2, ge=1, description="threads that decode, shrink and encode")
    pixels_at_once: int = Field(
        16_000_000, ge=1, description="pixels of concurrent images; a larger image is processed on its own"
    )


class ResizerParameters(StageParameters):
    """What a profile may ask: its own renditions, in place of the configured ones."""

    sides: dict[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,31}$")], Annotated[int, Field(ge=1, le=MAX_SIDE)]
    ] = Field(default_factory=dict, max_length=MAX_RENDITIONS, description="as the setting of this name")


@dataclass(frozen=True, slots=True)
class Tools:
    """The object store, the thread pool, the pixel budget and the renditions."""

    files: FileStore
    threads: ThreadPoolExecutor
    budget: PixelBudget
    sides: Mapping[str, int]

    def sides_of(self, event: ImageSanitized) -> Mapping[str, int]:
        """Return the renditions to create for an image."""
        return ResizerParameters.of(event, "resizer").sides or self.sides

    async def work(self, function: Callable[..., T], *args: object) -> T:
        """Run a function in the pool."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *args)


@asynccontextmanager
async def open_tools(settings: ResizerSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Open the thread pool."""
    with ThreadPoolExecutor(settings.threads, thread_name_prefix="resizer") as threads:
        yield Tools(resources.files, threads, PixelBudget(settings.pixels_at_once), settings.sides)


async def resize_image(event: ImageSanitized, tools: Tools) -> ResizedImage:
    """Store one rendition per side; equal masters give equal bytes under equal keys."""
    full = (event.image.width, event.image.height)
    sides = tools.sides_of(event)
    sizes = {name: fitted(full, side) for name, side in sorted(sides.items(), key=lambda item: item[1])}
    async with tools.budget.reserve(full[0] * full[1]):
        bodies = await _render(event.image.master, set(sizes.values()), tuple(sides.values()), tools)
    stored = (_store(event, name, size, bodies[size], tools.files) for name, size in sizes.items())
    return ResizedImage(renditions=tuple(await asyncio.gather(*stored)))


async def _render(master: ObjectRef, sizes: set[Size], sides: tuple[int, ...], tools: Tools) -> dict[Size, bytes]:
    """Decode once, render every size; the largest first, as its encoding takes longest."""
    data, wanted = await _read(master, tools), sorted(sizes, reverse=True)
    with engine_errors("resizer"):
        image = await tools.work(open_master, data, sides)
        bodies = await asyncio.gather(*(tools.work(render, image, size) for size in wanted))
    return dict(zip(wanted, bodies, strict=True))


async def _store(event: ImageSanitized, name: str, size: Size, body: bytes, files: FileStore) -> Rendition:
    key = image_key(event.image_id, event.generation, f"{name}.webp", run=event.run)
    return Rendition(
        name=name,
        object=await files.put(key, body, content_type="image/webp"),
        width=size[0],
        height=size[1],
        aspect_ratio=round(event.image.width / event.image.height, 4),
        format="webp",
    )


async def _read(master: ObjectRef, tools: Tools) -> bytes:
    try:
        data = await tools.files.get(master.key)
    except ObjectMissing as error:
        raise ObjectGone(f"the master {master.key} is missing") from error
    if (await tools.work(hashlib.sha256, data)).hexdigest() != master.sha256:
        raise Malformed(f"the master {master.key} has other bytes than its event says", code=ErrorCode.OBJECT_CHANGED)
    return data


async def probe(tools: Tools) -> None:
    """Render an image of the stage's own and write to the object store; raise what fails."""
    image = await tools.work(open_master, GOLDEN_PNG, tuple(tools.sides.values()))
    await tools.work(render, image, image.size)
    await tools.files.check()


def _parameters(event: ImageSanitized, tools: Tools) -> Mapping[str, JsonValue]:
    encoding: dict[str, JsonValue] = {"quality": WEBP_QUALITY, "effort": [WEBP_EFFORT, WEBP_EFFORT_LARGE, LARGE_PIXELS]}
    return {"sides": dict(tools.sides_of(event)), "webp": encoding}


def _announce(event: ImageSanitized, resized: ResizedImage, announcement: Announcement) -> Emit:
    fact = ImageResized(
        **fact_fields(event),
        report=announcement.report,
        renditions=resized.renditions,
    )
    return Emit(((topics.FACTS, fact),))


STAGE: Stage[ImageSanitized, Tools, ResizedImage] = Stage(
    name="resizer",
    version="1",
    consumes=(topics.SANITIZED,),
    emits=(topics.FACTS,),
    settings=ResizerSettings,
    parameters=ResizerParameters,
    open=open_tools,
    process=resize_image,
    once=Once(ResizedImage, input=lambda event: event.image.master, parameters=_parameters, announce=_announce),
    probe=probe,
    lineage=LineageKind.VARIANT,
)
