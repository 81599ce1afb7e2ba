"""The sanitizer decides whether an image is acceptable, and creates the master that all other stages read.

In: ImageUploaded, ImageFetched (the original is in the object store). Out: ImageSanitized, as work for the analysis
stages and as a fact. Stored: the master, upright, sRGB, without metadata; of a document (TIFF, PDF) the first page is
the master, and further pages are stored alike. Refused: images of unsupported formats, too large, damaged, or beyond a
decoder's limits. The original is decoded in a sandboxed child, never in this process, and one page at a time.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Self

from pydantic import Field, JsonValue, model_validator

from agents.core.golden_image import GOLDEN_PNG
from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageFetched, ImageUploaded
from schemas.formats import IMAGE_TYPES
from schemas.http.history import LineageKind
from schemas.stored.results import PageImage, SanitizedImage
from schemas.values import ErrorCode, ObjectRef
from streams import topics
from streams.errors import EngineFailed, Malformed, NotReady, ObjectGone, Retryable
from streams.object_store.keys import image_key
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.sandbox.child_process import Limits
from streams.sandbox.errors import (
    SandboxCrashed,
    SandboxFailed,
    SandboxMemory,
    SandboxNotContained,
    SandboxRefused,
    SandboxTimeout,
    SandboxUnavailable,
)
from streams.sandbox.pool import Sandbox
from streams.stage import Announcement, Deployment, Emit, Once, Outcome, Reject, Resources, Stage, StageSettings
from streams.telemetry.health_board import Condition

Arrival = ImageUploaded | ImageFetched

_CHILD = "agents.core.sanitize:sanitize_in_child"
TRIES = 2  # children per image, if the first one exits without a reason
_DECODING = 0.8  # share of the time left after the first page that decoding the others may take, apart from the store
_OF_DOCUMENTS = {"max_pages", "max_document_pixels", "pdf_dpi"}  # limits that change no other result
_WITHOUT_PAGES = IMAGE_TYPES - {"image/tiff"}
_CONTENT_TYPES = {"jpg": "image/jpeg", "png": "image/png"}  # all formats of a master; the child is untrusted


class SanitizerSettings(StageSettings):
    """Limits of an image and of its decoding."""

    concurrency: int = Field(2, ge=1, description="images decoded concurrently, each in its own child process")
    deadline_s: float = Field(
        100.0,
        gt=0,
        description="seconds one try may take: an image may be decoded twice within it, and a document's further pages "
        "in what is left",
    )
    max_bytes: int = Field(50_000_000, ge=1, description="largest original, bytes")
    max_side: int = Field(10_000, ge=1, description="largest width or height, pixels")
    max_pixels: int = Field(
        100_000_000, ge=1, description="most pixels, width x height over all frames; of a document, one page"
    )
    max_frames: int = Field(10_000, ge=1, description="most frames of an animation or pages of a document")
    max_pages: int = Field(50, ge=1, le=500, description="pages taken of a document (TIFF, PDF), the first ones")
    max_document_pixels: int = Field(
        500_000_000, ge=1, description="most pixels over all pages taken of a document; the first page is always taken"
    )
    pdf_dpi: int = Field(
        200,
        ge=36,
        le=1200,
        description="resolution of a PDF's pages; less where one would exceed max_side or max_pixels",
    )
    keep_capture_details: bool = Field(False, description="keep capture time and camera in the private result")
    decode_memory_mb: int = Field(2048, ge=256, description="memory limit of one decoding child, MB")
    decode_cpu_s: int = Field(30, ge=1, description="CPU seconds one image may take")
    decode_wall_s: float = Field(45.0, gt=0, description="seconds one decode may take; less than half of deadline_s")

    @model_validator(mode="after")
    def _decodes_twice(self) -> Self:
        if TRIES * self.decode_wall_s >= self.deadline_s:
            raise ValueError(f"deadline_s must be more than {TRIES} x decode_wall_s: a decode may be retried")
        return self


class _PagesTimeout(Exception):
    """A document's pages take longer to decode than they may."""


@dataclass(frozen=True, slots=True)
class Tools:
    """The object store, the sandbox and the settings."""

    files: FileStore
    sandbox: Sandbox
    settings: SanitizerSettings

    def limits(self) -> dict[str, JsonValue]:
        """Return the settings that change a result."""
        kept = {"max_bytes", "max_side", "max_pixels", "max_frames", "keep_capture_details"}
        return self.settings.model_dump(include=kept | _OF_DOCUMENTS)


@asynccontextmanager
async def open_tools(settings: SanitizerSettings, resources: Resources) -> AsyncIterator[Tools]:
    """Start the decoding children. Raises NotReady if the system lacks a required part of their confinement."""
    limits = Limits(memory_mb=settings.decode_memory_mb, cpu_s=settings.decode_cpu_s, wall_s=settings.decode_wall_s)
    require = resources.settings.sandbox.require
    async with AsyncExitStack() as stack:
        try:
            sandbox = await stack.enter_async_context(
                Sandbox(_CHILD, workers=settings.concurrency, limits=limits, require=require)
            )
        except SandboxNotContained as error:
            raise NotReady(str(error)) from error
        resources.health.say("sandbox", Condition.OK, sandbox.confinement())
        yield Tools(resources.files, sandbox, settings)


async def sanitize_image(event: Arrival, tools: Tools) -> SanitizedImage | Outcome:
    """Store the master of an acceptable image and a document's further pages; equal originals give equal bytes."""
    if event.original.size > tools.settings.max_bytes:
        size, most = event.original.size / 1e6, tools.settings.max_bytes / 1e6
        return Reject(ErrorCode.FILE_TOO_LARGE, f"The file has {size:.1f} MB; at most {most:g} MB are accepted.")
    until = asyncio.get_running_loop().time() + tools.settings.deadline_s
    try:
        data = await _read(event.original, tools)
        facts, (master,) = await tools.sandbox.run(tools.limits(), data, tries=TRIES)
        stored = await _store(event, tools, "master", str(facts["extension"]), master)
        first = SanitizedImage.model_validate({**facts, "master": stored, "pages": ()})
        pages = await _further_pages(event, tools, data, first, int(str(facts["pages"])), until)
    except SandboxRefused as refused:
        return Reject(ErrorCode(refused.code), refused.message[:500])
    except SandboxMemory:
        return Reject(ErrorCode.DECODE_MEMORY, "Decoding the image needs more memory than the limit.")
    except (SandboxTimeout, _PagesTimeout):
        return Reject(ErrorCode.DECODE_TIMEOUT, "Decoding the image takes longer than the limit.")
    except SandboxCrashed:
        return Reject(ErrorCode.DECODER_CRASHED, "The image makes its decoder crash.")
    except SandboxFailed as error:
        raise EngineFailed(f"the decoder raised an error: {error}") from error
    except SandboxUnavailable as error:
        raise Retryable(str(error)) from error
    return first.model_copy(update={"pages": pages})


async def _further_pages(
    event: Arrival, tools: Tools, data: bytes, first: SanitizedImage, count: int, until: float
) -> tuple[PageImage, ...]:
    """Store the pages after the first, within the limits, without those that cannot be decoded.

    Raises _PagesTimeout if their decoding does not leave enough time to store them until then (the loop's clock).
    Each is stored before the next is decoded, which bounds the memory.
    """
    loop, pages = asyncio.get_running_loop(), list[PageImage]()
    left_s, pixels = _DECODING * (until - loop.time()), first.width * first.height
    for number in range(2, min(count, tools.settings.max_pages) + 1):
        began = loop.time()
        try:
            async with asyncio.timeout(left_s):
                facts, (body,) = await tools.sandbox.run({**tools.limits(), "page": number}, data, tries=TRIES)
        except (SandboxRefused, SandboxMemory, SandboxTimeout, SandboxCrashed):
            continue
        except TimeoutError as error:
            raise _PagesTimeout from error
        finally:
            left_s -= loop.time() - began
        width, height = int(str(facts["width"])), int(str(facts["height"]))
        pixels += width * height
        if pixels > tools.settings.max_document_pixels:
            break
        stored = await _store(event, tools, f"page-{number}", str(facts["extension"]), body)
        pages.append(PageImage(number=number, object=stored, width=width, height=height))
    return tuple(pages)


async def _store(event: Arrival, tools: Tools, name: str, extension: str, body: bytes) -> ObjectRef:
    key = image_key(event.image_id, event.generation, f"{name}.{extension}", run=event.run)
    return await tools.files.put(key, body, content_type=_CONTENT_TYPES[extension])


async def _read(original: ObjectRef, tools: Tools) -> bytes:
    try:
        data = await tools.files.get(original.key, limit=original.size)
    except ObjectMissing as error:
        raise ObjectGone(f"the original {original.key} is missing") from error
    except ValueError as error:
        raise Malformed(f"the original differs from its event: {error}", code=ErrorCode.OBJECT_CHANGED) from error
    if (await asyncio.to_thread(hashlib.sha256, data)).hexdigest() != original.sha256:
        raise Malformed(
            f"the original {original.key} has other bytes than its event says", code=ErrorCode.OBJECT_CHANGED
        )
    return data


async def probe(tools: Tools) -> None:
    """Decode an image of the stage's own and write to the object store; raise what fails."""
    await tools.sandbox.run(tools.limits(), GOLDEN_PNG, tries=TRIES)
    await tools.files.check()


def _parameters(event: Arrival, tools: Tools) -> Mapping[str, JsonValue]:
    limits = tools.limits()
    if event.original.content_type in _WITHOUT_PAGES:
        return {name: limit for name, limit in limits.items() if name not in _OF_DOCUMENTS}
    return limits


def _announce(event: Arrival, image: SanitizedImage, announcement: Announcement) -> Emit:
    fact = ImageSanitized(
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
    return Emit(((topics.SANITIZED, fact), (topics.FACTS, fact)))


STAGE: Stage[Arrival, Tools, SanitizedImage] = Stage(
    name="sanitizer",
    version="2",
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
    probe=probe,
    lineage=LineageKind.MASTER,
    # Two children at their limit, and in this process an original and a master for each.
    deployment=Deployment(memory_limit="5Gi", lag_per_replica=150),
)
