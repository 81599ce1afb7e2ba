"""Views of records that are read in part: the listed keys suffice, and each is needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
from pydantic import BaseModel

from gateway.images.views import ITEM_KEYS, image_item
from gateway.operations.failures import FAILED_KEYS, failed_image
from gateway.search.views import SEARCH_KEYS, search_item
from schemas.values import ErrorCode, ImageState, ObjectRef, Rendition, StageState, new_image_id
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
