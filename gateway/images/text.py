"""The text of one image: as JSON with boxes, as plain text, or as a document (hOCR, ALTO, PDF)."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Query, Request, Response

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.etags import CONDITIONAL, TAGGED, answered, tagged
from gateway.http.problems import Problem, documented
from gateway.images.delivery import SAFETY, disposition, filename_of
from gateway.images.lookup import Lookup
from gateway.images.results import Results
from gateway.images.text_formats.alto import alto
from gateway.images.text_formats.hocr import hocr
from gateway.images.views import text_view
from gateway.settings import GatewaySettings
from schemas.http.jobs import TextFormat, TextView
from schemas.http.problems import ProblemCode
from schemas.stored.results import ReadText, TextPage
from schemas.values import ImageState, ObjectRef, made_at
from streams.concurrency.timeouts import bounded
from streams.object_store.keys import image_prefix, is_below
from streams.object_store.protocol import FileStore, ObjectMissing
from streams.read_model.records import ImageRecord

log = logging.getLogger(__name__)

_MOST_PIXELS = 50_000_000  # of an image that is decoded for a PDF
_MOST_BYTES = 100_000_000  # of all images of a PDF; pages after that have their text alone
_AT_ONCE = 2  # PDFs that are made at once: each may hold a decoded image
_MEDIA_TYPES = {"text": "text/plain", "hocr": "application/xhtml+xml", "alto": "application/xml"}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "the text",
        "headers": {"ETag": TAGGED},
        "content": {
            **{kind: {"schema": {"type": "string"}} for kind in _MEDIA_TYPES.values()},
            "application/pdf": {"schema": {"type": "string", "format": "binary"}},
        },
    },
    304: {"description": "unchanged"},
}


@dataclass(frozen=True, slots=True)
class ImageText:
    """The endpoint of an image's text."""

    settings: GatewaySettings
    files: FileStore
    lookup: Lookup
    pdfs: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    def routes(self) -> Routes:
        """Return the route."""
        routes = Routes("/api/v1/images", tags=["query"])
        routes.add_api_route(
            "/{image_id}/text",
            self.text,
            response_model=TextView,
            dependencies=[requires(Scope.READ)],
            summary="Get the text of an image",
            openapi_extra=CONDITIONAL,
            responses={
                **documented(
                    ProblemCode.NOT_FOUND,
                    ProblemCode.GONE,
                    ProblemCode.NOT_FINISHED,
                    ProblemCode.DEPENDENCY_UNAVAILABLE,
                ),
                **_RESPONSES,
            },
        )
        return routes

    async def text(
        self,
        image_id: str,
        request: Request,
        owner: Caller,
        wanted: Annotated[
            TextFormat,
            Query(
                alias="format",
                description="`json`: with boxes, as in the job's result; `text`: in reading order, pages separated by "
                "form feeds; `hocr`: hOCR 1.2; `alto`: ALTO XML 4.4; `pdf`: the image with searchable text",
            ),
        ] = "json",
    ) -> Response:
        """Return the text of an image. 409 until it is read, 404 if it never will be."""
        record = await self.lookup.image(image_id, owner)
        read = await self._read(record)
        if wanted == "json":
            return answered(request, text_view(read))
        if wanted == "pdf":
            headers = {"Content-Disposition": disposition(filename_of(record, "pdf"), download=False)}
            return tagged(request, await self._pdf(record, pages_of(record, read)), "application/pdf", headers)
        if wanted == "text":
            content = read.content.encode(errors="replace")
        else:
            content = await asyncio.to_thread(hocr if wanted == "hocr" else alto, pages_of(record, read))
        return tagged(request, content, _MEDIA_TYPES[wanted], SAFETY)

    async def _read(self, record: ImageRecord) -> ReadText:
        """Return the stored text, else what the record has of it. Raises Problem (404, 409)."""
        read = await Results(self.settings, self.files, self.lookup).text_of(record)
        if read is not None:
            return read
        if record.text is not None:
            return ReadText(content=record.text, spans=(), policy="")
        if record.state is ImageState.PROCESSING and "ocr" not in record.stages:
            raise self.lookup.not_finished("The image's text is not read yet.")
        raise Problem(ProblemCode.NOT_FOUND, "The image's text was not read; see `stages` of its job.")

    async def _pdf(self, record: ImageRecord, pages: tuple[TextPage, ...]) -> bytes:
        from gateway.images.text_formats.pdf import pdf  # noqa: PLC0415 - takes a second, and few processes need it

        async with self.pdfs:
            images = await self._images(record)
            made = datetime.fromtimestamp(made_at(record.image_id), UTC)
            return await asyncio.to_thread(pdf, pages, images.get, made_at=made)

    async def _images(self, record: ImageRecord) -> dict[int, bytes]:
        """Return the bytes of each page's image, as far as they are stored and not too many.

        Of the first page the largest rendition, without any the master.
        """
        sized = [(each.width * each.height, each.object) for each in record.renditions]
        if not sized and record.master is not None:
            sized = [((record.width or 0) * (record.height or 0), record.master)]
        first = max((each for each in sized if _shown(record, *each)), key=lambda each: each[0], default=None)
        references = {1: first[1]} if first is not None else {}
        for page in record.pages:
            if _shown(record, page.width * page.height, page.object):
                references[page.number] = page.object
        images: dict[int, bytes] = {}
        room = _MOST_BYTES
        for number, reference in references.items():
            room -= reference.size
            if room >= 0 and (image := await self._bytes(record, reference)) is not None:
                images[number] = image
        return images

    async def _bytes(self, record: ImageRecord, reference: ObjectRef) -> bytes | None:
        try:
            return await bounded(self.files.get(reference.key, limit=reference.size), self.settings.storage_timeout_s)
        except (ObjectMissing, ValueError) as error:  # ValueError: longer than recorded
            log.warning("image of a PDF cannot be read", extra={"image_id": record.image_id, "error": repr(error)})
            return None


def _shown(record: ImageRecord, pixels: int, reference: ObjectRef) -> bool:
    return pixels <= _MOST_PIXELS and is_below(image_prefix(record.image_id), reference.key)


def pages_of(record: ImageRecord, read: ReadText) -> tuple[TextPage, ...]:
    """Return the pages of a text; that of a single image is one page of the image's size."""
    if read.pages:
        return read.pages
    page = TextPage(
        width=record.width or 1,
        height=record.height or 1,
        content=read.content,
        spans=read.spans,
        blocks=read.blocks,
        rotation=read.rotation,
        tilt=read.tilt,
    )
    return (page,)
