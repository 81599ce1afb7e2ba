"""A submission's fields are copied from event to event and from run to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from agents.core.merge import learn, unless_annotated
from schemas.annotations import MAX_TAGS
from schemas.events.facts import ImageRefused, ImageSanitized
from schemas.events.intake import SUBMISSION, FetchRequested, ImageUploaded
from schemas.values import ErrorCode, ImageState, new_image_id
from streams.object_store.factory import open_files
from streams.operations.rerun_events import Restarts, rerun_analysis
from streams.read_model.records import ImageRecord, StageRecord
from streams.runtime.outcome_facts import refused
from streams.settings import FilesSettings
from streams.stage import Reject
from tests.support.facts import WHEN, Facts, ref, report

SAID: dict[str, Any] = {
    "bucket": "trip", "filename": "me.jpg", "tags": ("a", "b c"), "category": "animals", "context": {"n": [1]},
    "revision": 3, "submitted_at": WHEN,
}  # fmt: skip


def test_every_field_of_a_submission_is_copied() -> None:
    """The next event gets every field, with the time of acceptance if there is no submission time."""
    assert set(SAID) == set(SUBMISSION)
    event = FetchRequested(image_id=new_image_id(), url="https://example.org/x", **SAID)
    assert event.submission_fields() == SAID
    nobody = ImageUploaded(image_id=new_image_id(), original=ref("a"), occurred_at="2026-02-02T00:00:00.000Z")
    assert nobody.submission_fields()["submitted_at"] == "2026-02-02T00:00:00.000Z"


def test_a_rejection_has_the_submissions_fields() -> None:
    """A rejected image keeps its submission's fields."""
    event = ImageUploaded(image_id=new_image_id(), original=ref("a"), **SAID)
    ((_, fact),) = refused(event, Reject(ErrorCode.CORRUPT_IMAGE, "It is damaged."), report("sanitizer")).events
    assert isinstance(fact, ImageRefused)
    assert {name: getattr(fact, name) for name in SUBMISSION} == SAID


async def test_a_rerun_has_the_current_annotations(tmp_path: Path) -> None:
    """The event of a rerun, of one stage or of the image, has the record's annotations and their revision."""
    image_id = new_image_id()
    sanitized = Facts(image_id).sanitized()
    assert isinstance(sanitized, ImageSanitized)
    done = StageRecord(state="done")
    known = {**learn(sanitized).keys, **SAID}
    record = ImageRecord.model_validate(
        {"image_id": image_id, "owner": "anna", "generation": 1, "state": ImageState.COMPLETED, **known,
         "required": ("sanitizer", "ocr"), "stages": {"sanitizer": done, "ocr": done}}
    )  # fmt: skip
    one = rerun_analysis(record, "ocr", 7).event
    assert isinstance(one, ImageSanitized)
    assert {name: getattr(one, name) for name in SUBMISSION} == SAID
    async with open_files(FilesSettings(directory=tmp_path)) as files:
        assert record.original is not None
        await files.put(record.original.key, b"x", content_type="image/jpeg")
        for _ in range(2):  # the second time from its receipt
            whole = (await Restarts(files).restart(record, "2026-03-03T00:00:00.000Z")).event
            assert isinstance(whole, ImageUploaded)
            assert whole.generation == 2
            assert {name: getattr(whole, name) for name in SUBMISSION} == SAID


@pytest.mark.parametrize(
    ("revision", "known", "written"), [(0, 0, True), (0, 1, False), (1, 1, False), (2, 1, True), (1, 0, True)]
)
def test_later_annotations_are_kept(revision: int, known: int, written: bool) -> None:
    """Submitted annotations are written unless the owner changed them since; all other fields are always written."""
    keys: dict[str, JsonValue] = {"tags": ["a"], "category": None, "context": {}, "revision": revision, "width": 3}
    assert unless_annotated(keys, known) == (keys if written else {"width": 3})


@pytest.mark.parametrize(
    "fields",
    [
        {"tags": [""]}, {"tags": ["a,b"]}, {"tags": ["a "]}, {"tags": ["\u0000"]}, {"tags": ["x" * 65]},
        {"tags": ["a"] * (MAX_TAGS + 1)}, {"category": ""}, {"category": "\n"}, {"revision": -1},
    ],
)  # fmt: skip
def test_invalid_tags_are_malformed(fields: dict[str, Any]) -> None:
    """Another service's event with ambiguous or far too many tags is malformed."""
    with pytest.raises(ValidationError):
        ImageUploaded.model_validate({"image_id": new_image_id(), "original": ref("a"), **fields})
