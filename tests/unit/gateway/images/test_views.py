"""Views of records: those that are read in part, where the listed keys suffice and each is needed; and documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from pydantic import BaseModel

from gateway.images.lookup import Job
from gateway.images.views import ITEM_KEYS, image_details, image_item, job_result
from gateway.operations.failures import FAILED_KEYS, failed_image
from gateway.search.views import SEARCH_KEYS, search_item
from schemas.stored.results import PageImage, ReadText, TextPage
from schemas.values import ErrorCode, ImageState, ObjectRef, Rendition, StageState, TextSpan, new_image_id
from streams.read_model.records import ImageRecord, StageRecord

ALWAYS = {"image_id", "owner", "generation", "deleted", "state"}
FAILED = StageRecord(state=StageState.FAILED, reason="internal-error", finished_at="2026-01-01T00:00:09Z")
RENDITION = Rendition(
    name="medium", object=ObjectRef(bucket="b", key="images/x", size=1, content_type="image/webp", sha256="a" * 64),
    width=4, height=3, aspect_ratio=4 / 3, format="webp",
)  # fmt: skip
RECORD = ImageRecord(
    image_id=new_image_id(), owner="anna", generation=3, state=ImageState.FAILED, stages={"ocr": FAILED},
    renditions=(RENDITION,), filename="cat.jpg", bucket="trip", labels=("cat",), tags=("summer",), category="pets",
    context={"album": 3}, error_code=ErrorCode.DEADLINE_EXCEEDED, error_message="a bug of ours",
    submitted_at="2026-01-01T00:00:00Z", finished_at="2026-01-01T00:00:10Z", text="a cat",
)  # fmt: skip


def view_of_failed(record: ImageRecord, base: str) -> BaseModel:
    """Return the failed image as an operator sees it."""
    return failed_image(record, base, with_owner=True, operator=True)


def view_of_hit(record: ImageRecord, base: str) -> BaseModel:
    """Return the image as a result of a search in its text."""
    return search_item(record, score=1, similarity=None, matched=("text",), query="cat", snippet_length=9, base=base)


def reduced(keys: Sequence[str]) -> ImageRecord:
    """Return the record as it is if only these keys are read."""
    return ImageRecord.model_validate(RECORD.model_dump(include=ALWAYS | set(keys)))


@pytest.mark.parametrize(
    ("view", "keys"),
    [
        pytest.param(image_item, ITEM_KEYS, id="listed"),
        pytest.param(view_of_failed, FAILED_KEYS, id="failed"),
        pytest.param(view_of_hit, SEARCH_KEYS, id="found"),
    ],
)
def test_the_keys_read_are_those_shown(view: Callable[[ImageRecord, str], BaseModel], keys: Sequence[str]) -> None:
    """A view of a record with only its keys is that of the whole record; without one of them it differs."""
    whole = view(RECORD, "http://x")
    assert view(reduced(keys), "http://x") == whole
    for key in keys:
        assert view(reduced([other for other in keys if other != key]), "http://x") != whole, key


def test_a_document_shows_its_pages() -> None:
    """Details and result say how many pages there are; the text has each page with its lines in its own pixels."""
    ref = RENDITION.object
    pages = tuple(PageImage(number=number, object=ref, width=4, height=number) for number in (2, 4))
    record = RECORD.model_copy(update={"master": ref, "pages": pages, "frames": 9, "source_format": "pdf"})
    spans = [TextSpan(text=f"line {n}", confidence=0.9, polygon=((0, 0), (1, n)), engine="ppocr") for n in (1, 2, 4)]
    read = tuple(
        TextPage(number=n, width=4, height=n, content=span.text, spans=(span,), rotation=90, tilt=1.5)
        for n, span in zip((1, 2, 4), spans, strict=True)
    )
    text = ReadText(content="line 1\fline 2\fline 4", spans=(spans[0],), policy="auto", pages=read)
    details = image_details(record, "http://x")
    assert (details.pages, details.frames) == (3, 9)
    job = Job(job_id=f"{record.image_id}.3", image_id=record.image_id, record=record, receipt=None)
    result = job_result(job, record, text, "http://x")
    assert result.metadata.pages == 3
    assert result.text is not None
    shown = [(page.number, page.height, page.content, page.rotation, page.tilt) for page in result.text.pages]
    assert shown == [(n, n, f"line {n}", 90, 1.5) for n in (1, 2, 4)]
    assert [page.spans[0].polygon for page in result.text.pages] == [span.polygon for span in spans]
    assert result.text.spans[0].text == "line 1"
    assert image_details(RECORD, "http://x").pages is None
