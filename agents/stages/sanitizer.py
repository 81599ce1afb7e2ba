"""The sanitizer decides, once, whether an image is acceptable, and makes the form of it that all others work on.

In: ImageUploaded, ImageFetched (the original bytes are in the object store). Out: ImageSanitized, as work for the
analysis stages and as a fact. Stored: the master, upright, sRGB, free of metadata. Refused: what is no image of ours,
too large, damaged, or more than a decoder may cost. The original is decoded in a sandboxed child, never here.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

from pydantic import Field, JsonValue, model_validator

from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageFetched, ImageUploaded
from schemas.http.history import LineageKind
from schemas.stored.results import SanitizedImage
from schemas.values import ErrorCode, ObjectRef
from streams import topics
from streams.errors import Malformed, ObjectGone, Retryable
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.sandbox.pool import (
    Limits,
    Sandbox,
    SandboxCrashed,
    SandboxMemory,
    SandboxRefused,
    SandboxTimeout,
    SandboxUnavailable,
)
from streams.stage import Announcement, Deployment, Emit, Once, Outcome, Reject, Resources, Stage, StageSettings

Arrival = ImageUploaded | ImageFetched

_CHILD = "agents.core.sanitize:sanitize_in_child"
TRIES = 2  # children an image is given, if the first one ends without saying why
_CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png"}  # all that a master may be, whatever the child says


class SanitizerSettings(StageSettings):
    """What an image may be, and what finding out may cost."""

    concurrency: int = Field(2, ge=1, description="images decoded at once, each in a child process of its own")
    deadline_s: float = Field(100.0, gt=0, description="seconds one try may take: an image may be decoded twice in it")
    max_bytes: int = Field(50_000_000, ge=1, description="bytes of an original")
    max_side: int = Field(10_000, ge=1, description="pixels of width or height")
    max_pixels: int = Field(100_000_000, ge=1, description="width x height, over all frames")
    max_frames: int = Field(10_000, ge=1, description="frames of an animation, pages of a TIFF")
    keep_capture_details: bool = Field(False, description="keep, privately, when and with what a photo was taken")
    decode_memory_mb: int = Field(2048, ge=256, description="memory of one decoding child")
    decode_cpu_s: int = Field(30, ge=1, description="CPU seconds one image may take")
    decode_wall_s: float = Field(45.0, gt=0, description="seconds one decode may take; less than half of deadline_s")

    @model_validator(mode="after")
    def _decodes_twice(self) -> Self:
        if TRIES * self.decode_wall_s >= self.deadline_s:
            raise ValueError(f"deadline_s must be more than {TRIES} x decode_wall_s: a decode may be tried again")
        return self


@dataclass(frozen=True, slots=True)
class Tools:
    """What the sanitizer works with."""

    files: FileStore
    sandbox: Sandbox
    settings: SanitizerSettings

    def limits(self) -> dict[str, JsonValue]:
        """Return the settings that change a result."""
        kept = {"max_bytes", "max_side", "max_pixels", "max_frames", "keep_capture_details"}
        return self.settings.model_dump(include=kept)


@asynccontextmanager
async def open_tools(settings: SanitizerSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Start the decoding children."""
    limits = Limits(memory_mb=settings.decode_memory_mb, cpu_s=settings.decode_cpu_s, wall_s=settings.decode_wall_s)
    async with Sandbox(_CHILD, workers=settings.concurrency, limits=limits) as sandbox:
        yield Tools(resources.files, sandbox, settings)


async def sanitize_image(event: Arrival, tools: Tools) -> SanitizedImage | Outcome:
    """Store the master of an acceptable image; the same original always gives the same bytes."""
    if event.original.size > tools.settings.max_bytes:
        size, most = event.original.size / 1e6, tools.settings.max_bytes / 1e6
        return Reject(ErrorCode.FILE_TOO_LARGE, f"The file has {size:.1f} MB; at most {most:g} MB are accepted.")
    try:
        facts, (master,) = await tools.sandbox.run(tools.limits(), await _read(event.original, tools), tries=TRIES)
    except SandboxRefused as refused:
        return Reject(ErrorCode(refused.code), refused.message[:500])
    except SandboxMemory:
        return Reject(ErrorCode.DECODE_MEMORY, "Decoding the image takes more memory than one image may use.")
    except SandboxTimeout:
        return Reject(ErrorCode.DECODE_TIMEOUT, "Decoding the image takes longer than one image may take.")
    except SandboxCrashed:
        return Reject(ErrorCode.DECODER_CRASHED, "The image is built in a way that makes its decoder crash.")
    except SandboxUnavailable as error:
        raise Retryable(str(error)) from error
    extension = str(facts["extension"])
    key = image_key(event.image_id, event.generation, f"master.{extension}", run=event.run)
    stored = await tools.files.put(key, master, content_type=_CONTENT_TYPES[extension])
    return SanitizedImage.model_validate({**facts, "master": stored})


async def _read(original: ObjectRef, tools: Tools) -> bytes:
    try:
        data = await tools.files.get(original.key, limit=original.size)
    except ObjectMissing as error:
        raise ObjectGone(f"the original {original.key} is not there") from error
    except ValueError as error:
        raise Malformed(
            f"the original cannot be read as its event says: {error}", code=ErrorCode.OBJECT_CHANGED
        ) from error
    if (await asyncio.to_thread(hashlib.sha256, data)).hexdigest() != original.sha256:
        raise Malformed(f"the original {original.key} is not what its event says", code=ErrorCode.OBJECT_CHANGED)
    return data


def _parameters(_: Arrival, tools: Tools) -> Mapping[str, JsonValue]:
    return tools.limits()


def _announce(event: Arrival, image: SanitizedImage, announcement: Announcement) -> Emit:
    said = ImageSanitized(
        image_id=event.image_id,
        owner=event.owner,
        generation=event.generation,
        run=event.run,
        profile=event.profile,
        **event.submission_fields(),
        report=announcement.report,
        original=event.original,
        image=image,
        source_url=event.url if isinstance(event, ImageFetched) else None,
    )
    return Emit(((topics.SANITIZED, said), (topics.FACTS, said)))


STAGE: Stage[Arrival, Tools, SanitizedImage] = Stage(
    name="sanitizer",
    version="1",
    consumes=(topics.UPLOADED, topics.FETCHED),
    emits=(topics.SANITIZED, topics.FACTS),
    settings=SanitizerSettings,
    open=open_tools,
    process=sanitize_image,
    once=Once(
        SanitizedImage,
        input=lambda event: event.original,
        parameters=_parameters,
        announce=_announce,
        yields=lambda image: image.master,
    ),
    lineage=LineageKind.MASTER,
    deployment=Deployment(memory_limit="2Gi", lag_per_replica=150),
)
