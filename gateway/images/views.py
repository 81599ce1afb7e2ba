"""Response bodies built from records and receipts. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from fastapi import Request, Response
from pydantic import JsonValue

from gateway.http.request_context import base_url
from gateway.images.lookup import Job
from gateway.settings import GatewaySettings
from schemas.http.images import ImageDetails, ImageItem, ImageView
from schemas.http.jobs import (
    Dimensions,
    EngineTextView,
    ImageMetadata,
    JobError,
    JobPhase,
    JobResult,
    JobStatus,
    ObjectView,
    PageTextView,
    Retry,
    SpanView,
    StageView,
    TextView,
    VariantView,
)
from schemas.http.submissions import Submitted
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.stored.results import ReadText
from schemas.values import ImageState, Rendition, StageState, TextSpan, job_id_of
from streams.read_model.records import ImageRecord, StageRetry

VERSION_DIGITS = 12  # of the sha256 in a rendition's URL: other bytes, another URL


def job_status(job: Job, base: str) -> JobStatus:
    """Return the status of a job."""
    record, receipt = job.record, job.receipt
    if record is None:
        return JobStatus(
            job_id=job.job_id,
            image_id=job.image_id,
            status=job.state,
            phase=JobPhase.PENDING,
            stages=_receipt_stages(receipt) if receipt else {},
            created_at=receipt.submitted_at if receipt else None,
            lane=receipt.lane if receipt else None,
        )
    return JobStatus(
        job_id=job.job_id,
        image_id=job.image_id,
        status=job.state,
        phase=_phase(job.state, record),
        retry=_first_retry(record) if job.state is ImageState.PROCESSING else None,
        stages=stages(record),
        urls=urls(record, base),
        created_at=record.submitted_at,
        completed_at=record.finished_at,
        error=_error(record),
    )


def job_result(job: Job, record: ImageRecord, text: ReadText | None, base: str) -> JobResult:
    """Return the result of an ended job; `text` is the stored OCR result."""
    detector = record.stages.get("detector")
    detected = detector is not None and detector.state is StageState.DONE
    return JobResult(
        image_id=job.image_id,
        job_id=job.job_id,
        status=job.state,
        urls=urls(record, base),
        metadata=_metadata(record),
        text=_text(record, text),
        objects=_objects(record) if detected or record.objects else None,
        analysis=analysis(record),
        stages=stages(record),
        error=_error(record),
        created_at=record.submitted_at,
        completed_at=record.finished_at,
    )


def stages(record: ImageRecord) -> dict[str, StageView]:
    """Return every required or reported stage; unreported ones are pending."""
    required = () if record.deleted else record.required
    found = {name: StageView(state=StageState.PENDING) for name in required}
    for name, retry in _retries(record).items():
        found[name] = StageView(
            state=StageState.PENDING, retrying=True, attempts=retry.attempts, reason=retry.code, message=retry.message,
            next_try_at=retry.next_try_at,
        )  # fmt: skip
    for name, stage in record.stages.items():
        ran = stage.state in (StageState.DONE, StageState.FAILED, StageState.REJECTED)
        found[name] = StageView(
            state=stage.state,
            attempts=stage.attempts if ran else None,
            duration_ms=stage.duration_ms if ran else None,
            version=stage.version or None,
            reused=True if stage.reused else None,
            reason=stage.reason,
            message=stage.message,
        )
    return found


def _retries(record: ImageRecord) -> dict[str, StageRetry]:
    """Return the last tries of the stages that have not ended."""
    if record.deleted:
        return {}
    return {name: retry for name, retry in record.retries.items() if name not in record.stages}


def _first_retry(record: ImageRecord) -> Retry | None:
    waiting = sorted(_retries(record).items(), key=lambda item: (item[1].next_try_at, item[0]))
    return next((Retry(stage=name, **retry.model_dump()) for name, retry in waiting), None)


def _phase(state: ImageState, record: ImageRecord) -> JobPhase:
    if state is not ImageState.PROCESSING:
        return JobPhase.ENDED
    if _retries(record):
        return JobPhase.RETRYING
    return JobPhase.PROCESSING if record.stages else JobPhase.PENDING


def analysis(record: ImageRecord) -> dict[str, dict[str, JsonValue]]:
    """Return the public recorded results by stage: the keys each stage declares public."""
    return {
        name: {key: recorded[key] for key in record.stages[name].public if key in recorded}
        for name, recorded in record.analysis.items()
        if name in record.stages
    }


def urls(record: ImageRecord, base: str) -> dict[str, str]:
    """Return the URL of each available size."""
    return {rendition.name: _url(record.image_id, rendition, base) for rendition in record.renditions}


def image_view(record: ImageRecord, rendition: Rendition, base: str) -> ImageView:
    """Return the view of one size of an image."""
    return ImageView(
        image_id=record.image_id,
        size=rendition.name,
        url=_url(record.image_id, rendition, base),
        width=rendition.width,
        height=rendition.height,
        aspect_ratio=rendition.aspect_ratio,
        format=rendition.format,
        size_bytes=rendition.object.size,
        sha256=rendition.object.sha256,
    )


ITEM_KEYS = (
    "renditions",
    "filename",
    "bucket",
    "labels",
    "tags",
    "category",
    "context",
    "error_code",
    "error_message",
    "submitted_at",
    "finished_at",
)
"""Keys of the record that `image_item` reads, besides those that every record has."""


def image_item(record: ImageRecord, base: str) -> ImageItem:
    """Return one image of a listing."""
    return ImageItem(
        image_id=record.image_id,
        job_id=job_id_of(record.image_id, record.generation),
        state=record.state,
        urls=urls(record, base),
        filename=record.filename,
        bucket=record.bucket,
        labels=record.labels,
        tags=record.tags,
        category=record.category,
        context=record.context,
        error=_error(record),
        created_at=record.submitted_at,
        completed_at=record.finished_at,
    )


def image_details(record: ImageRecord, base: str) -> ImageDetails:
    """Return the description of an image, without positions of text and objects."""
    known = {**image_item(record, base).model_dump(), **_metadata(record).model_dump()}
    return ImageDetails(
        **known, text=record.text, analysis=analysis(record), stages=stages(record), revision=record.revision
    )


def _url(image_id: str, rendition: Rendition, base: str) -> str:
    version = rendition.object.sha256[:VERSION_DIGITS]
    return f"{base}/api/v1/images/{image_id}/direct?size={quote(rendition.name)}&v={version}"


def _receipt_stages(receipt: Receipt) -> dict[str, StageView]:
    if receipt.kind is ReceiptKind.DELETE:
        return {}
    wanted = ("sanitizer", *(name for name in receipt.profile.stages if name != "sanitizer"))
    return {name: StageView(state=StageState.PENDING) for name in wanted}


def _error(record: ImageRecord) -> JobError | None:
    if record.error_code is None or record.state not in (ImageState.REJECTED, ImageState.FAILED):
        return None
    return JobError(code=record.error_code, message=record.error_message or "")


def _metadata(record: ImageRecord) -> ImageMetadata:
    known = record.width is not None and record.height is not None
    return ImageMetadata(
        dominant_color=record.dominant_colour,
        palette=tuple(colour.hex for colour in record.palette),
        thumbhash=record.thumbhash,
        perceptual_hash=record.perceptual_hash,
        original_dimensions=Dimensions(width=record.width or 0, height=record.height or 0) if known else None,
        source_format=record.source_format,
        frames=record.frames,
        pages=len(record.sanitized()) or None,
        filename=record.filename,
        bucket=record.bucket,
        source_url=record.source_url,
        tags=record.tags,
        category=record.category,
        variants=_variants(record.renditions),
        context=record.context,
    )


def _variants(renditions: tuple[Rendition, ...]) -> dict[str, VariantView]:
    return {
        rendition.name: VariantView(
            width=rendition.width,
            height=rendition.height,
            aspect_ratio=rendition.aspect_ratio,
            format=rendition.format,
            size_bytes=rendition.object.size,
        )
        for rendition in renditions
    }


def _text(record: ImageRecord, text: ReadText | None) -> TextView | None:
    if text is None:
        return None if record.text is None else TextView(content=record.text)
    return text_view(text)


def text_view(text: ReadText) -> TextView:
    """Return a text with its boxes."""
    return TextView(
        content=text.content,
        spans=_spans(text.spans),
        blocks=text.blocks,
        rotation=text.rotation,
        tilt=text.tilt,
        notes=text.notes,
        readings=tuple(
            EngineTextView(engine=each.engine, content=each.content, spans=_spans(each.spans)) for each in text.readings
        ),
        pages=tuple(PageTextView(**{**dict(page), "spans": _spans(page.spans)}) for page in text.pages),
    )


def _spans(spans: Iterable[TextSpan]) -> tuple[SpanView, ...]:
    return tuple(
        SpanView(
            text=span.text,
            confidence=span.confidence,
            polygon=span.polygon,
            engine=span.engine,
            language=span.language,
            script=span.script,
            words=span.words,
            block=span.block,
            row=span.row,
        )
        for span in spans
    )


def _objects(record: ImageRecord) -> tuple[ObjectView, ...]:
    return tuple(
        ObjectView(label=found.label, confidence=found.confidence, box=found.box, pixels=found.pixels)
        for found in record.objects
    )


def submitted(receipt: Receipt, request: Request, response: Response, settings: GatewaySettings) -> Submitted:
    """Return the body of a 202; set Location and Retry-After."""
    status_url = f"{base_url(request, settings)}/api/v1/images/jobs/{receipt.job_id}"
    response.headers["Location"] = status_url
    response.headers["Retry-After"] = str(settings.poll_after_s)
    return Submitted(
        job_id=receipt.job_id,
        image_id=receipt.image_id,
        lane=receipt.lane,
        status_url=status_url,
        result_url=f"{status_url}/result",
    )
