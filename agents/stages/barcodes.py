"""barcodes: a sanitized master in, its barcodes out: QR, EAN, Code 128, Data Matrix and others, with value and place.

Only for images whose profile names it. Rejects no image; no code is a result.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass

from pydantic import Field, JsonValue

from agents.core.barcodes import MOST_CODES, VERSION, Barcode, barcodes_in, check
from agents.models.loading import open_master, read_master
from schemas.events.facts import ImageSanitized
from schemas.stored.results import StageResult
from streams import topics
from streams.concurrency.weighted_semaphore import PixelBudget
from streams.errors import engine_errors
from streams.object_store.protocol import FileStore
from streams.stage import Deployment, Once, Resources, Stage, StageSettings

_ASKEW = 45  # degrees an image is turned by if nothing is found: linear codes are read up to 25 degrees askew


class BarcodesSettings(StageSettings):
    """Limits of the barcodes stage; DARKROOM_BARCODES__…"""

    side: int = Field(
        2048, ge=256, description="pixels of the longest side of the first look; the second, if it finds none, is whole"
    )
    max_codes: int = Field(50, ge=1, le=MOST_CODES, description="most codes of one image, the uppermost ones")
    pixels_at_once: int = Field(
        32_000_000, ge=1, description="pixels of concurrent images; a larger image is processed on its own"
    )


class FoundBarcodes(StageResult):
    """The barcodes of an image, from top to bottom."""

    codes: tuple[Barcode, ...] = Field(max_length=MOST_CODES)


@dataclass(frozen=True, slots=True)
class Tools:
    """The object store, the settings and the pixel budget."""

    files: FileStore
    settings: BarcodesSettings
    budget: PixelBudget


@asynccontextmanager
async def open_tools(settings: BarcodesSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Need nothing but the object store."""
    yield Tools(resources.files, settings, PixelBudget(settings.pixels_at_once))


async def find_barcodes(event: ImageSanitized, tools: Tools) -> FoundBarcodes:
    """Return the barcodes of an image."""
    size = (event.image.width, event.image.height)
    async with tools.budget.reserve(size[0] * size[1]):
        master = await read_master(tools.files, event.image.master.key)
        return FoundBarcodes(codes=await asyncio.to_thread(_look, master, size, tools.settings))


def _look(master: bytes, size: tuple[int, int], settings: BarcodesSettings) -> tuple[Barcode, ...]:
    width, height = size
    with engine_errors("barcodes"):
        image = open_master(master, largest_side=settings.side)
        for degrees in (0, _ASKEW):
            if found := barcodes_in(image, width=width, height=height, most=settings.max_codes, turned=degrees):
                return found
        if max(size) <= settings.side:
            return ()
        return barcodes_in(open_master(master), width=width, height=height, most=settings.max_codes)


async def probe(tools: Tools) -> None:
    """Read a drawn code, and write to the object store; raise what fails."""
    await asyncio.to_thread(check)
    await tools.files.check()


def _parameters(_event: ImageSanitized, tools: Tools) -> Mapping[str, JsonValue]:
    return {"side": tools.settings.side, "max_codes": tools.settings.max_codes, "zxing-cpp": VERSION}


def _record(result: FoundBarcodes) -> Mapping[str, JsonValue]:
    return {"codes": [code.model_dump(mode="json") for code in result.codes]}


def _searched(result: FoundBarcodes) -> Mapping[str, JsonValue]:
    return {"codes": [code.value for code in result.codes if code.encoding == "text"]}


STAGE: Stage[ImageSanitized, Tools, FoundBarcodes] = Stage(
    name="barcodes",
    version="1",
    consumes=(topics.SANITIZED,),
    emits=(topics.FACTS,),
    settings=BarcodesSettings,
    open=open_tools,
    process=find_barcodes,
    probe=probe,
    once=Once(result=FoundBarcodes, input=lambda event: event.image.master, parameters=_parameters),
    record=_record,
    public=("codes",),
    searched=_searched,
    deployment=Deployment(cpu="200m", memory="256Mi", memory_limit="2Gi", lag_per_replica=300),
)
