"""What an outcome carries: the submission as it was sent, what was found, and where to get the rest."""

from __future__ import annotations

import pytest

from agents.indexing.outcome_event import outcome_of
from schemas.events.outcomes import OUTCOME_TEXT_LIMIT, ImageCompleted, ImageFailed, ImageRejected
from schemas.values import ImageState, Profile, Rendition, StageState, new_image_id
from streams.object_store.keys import image_key
from streams.read_model.records import ImageRecord, StageRecord
from streams.topics import MAX_MESSAGE_BYTES
from tests.support.facts import ref

IMAGE = new_image_id()
THUMBNAIL = Rendition(
    name="thumbnail", object=ref("d", image_key(IMAGE, 2, "thumbnail.webp")), width=15, height=10, aspect_ratio=1.5,
    format="webp",
)  # fmt: skip
CONTEXT = {"album": {"n": [1, None, "ü"]}, "note": ""}


def ended(state: ImageState = ImageState.COMPLETED, **changes: object) -> ImageRecord:
    """Return the record of an image that has ended."""
    record = ImageRecord(
        image_id=IMAGE, owner="anna", generation=2, state=state, bucket="trip", filename="me.jpg", tags=("sea",),
        category="holiday", context=CONTEXT, renditions=(THUMBNAIL,), labels=("boat", "person"), text="Hello",
        stages={"sanitizer": StageRecord(state=StageState.DONE)}, submitted_at="2026-01-01T00:00:00Z",
    )  # fmt: skip
    return ImageRecord.model_validate({**record.model_dump(), **changes})


def test_an_outcome_carries_what_a_consumer_needs() -> None:
    """No further request is needed for the submission, the sizes, the labels and a short text."""
    outcome = outcome_of(ended(), Profile())
    assert isinstance(outcome, ImageCompleted)
    assert (outcome.image_id, outcome.owner, outcome.generation) == (IMAGE, "anna", 2)
    assert (outcome.bucket, outcome.filename, outcome.tags, outcome.category) == (
        "trip", "me.jpg", ("sea",), "holiday",
    )  # fmt: skip
    assert outcome.context == CONTEXT
    assert (outcome.renditions, outcome.labels) == ((THUMBNAIL,), ("boat", "person"))
    assert (outcome.text, outcome.text_complete) == ("Hello", True)
    assert outcome.links is not None
    assert outcome.links.result == f"/api/v1/images/jobs/{IMAGE}.2/result"
    assert outcome.links.bytes == f"/api/v1/images/{IMAGE}/direct"


@pytest.mark.parametrize(("state", "kind"), [("rejected", ImageRejected), ("failed", ImageFailed)])
def test_an_image_that_did_not_complete_has_its_reason_and_submission(state: str, kind: type[ImageFailed]) -> None:
    """Code and sentence are those of the record; the producer's context finds the order it belongs to."""
    outcome = outcome_of(ended(ImageState(state), error_code="gone", error_message="No bytes."), Profile())
    assert isinstance(outcome, kind)
    assert (outcome.code, outcome.message, outcome.context) == ("gone", "No bytes.", CONTEXT)


@pytest.mark.parametrize("more", [0, 1])
def test_the_text_is_bounded(more: int) -> None:
    """An outcome has the beginning of a long text, and says that there is more."""
    outcome = outcome_of(ended(text="x" * (OUTCOME_TEXT_LIMIT + more)), Profile())
    assert outcome.text == "x" * OUTCOME_TEXT_LIMIT
    assert outcome.text_complete is (more == 0)


def test_an_outcome_always_fits_into_a_message() -> None:
    """What is too large is left out, the least needed first; an image without an outcome would never end for others."""
    outcome = outcome_of(ended(context={"filler": "x" * (MAX_MESSAGE_BYTES - 5000)}, text="ü" * 4096), Profile())
    assert (outcome.text, outcome.text_complete) == (None, False)
    assert "filler" in outcome.context
    outcome = outcome_of(ended(context={"filler": "x" * MAX_MESSAGE_BYTES}), Profile())
    assert (outcome.context, outcome.renditions, outcome.filename) == ({}, (), "me.jpg")
    assert len(outcome.body()) < MAX_MESSAGE_BYTES
