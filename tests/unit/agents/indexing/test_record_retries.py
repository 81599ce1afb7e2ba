"""Retries in the record: what a job's status says of a stage between its tries."""

from __future__ import annotations

import pytest

from agents.stages.indexer import Tools, index
from gateway.images.lookup import Job
from gateway.images.views import job_status
from schemas.events.facts import StageRetrying
from schemas.http.jobs import JobPhase, JobStatus
from schemas.values import ErrorCode, ImageState, new_image_id
from streams.stage import Emit, Skip
from tests.support.facts import WHEN, Facts, report

SOON, LATER = "2026-01-01T00:00:30.000Z", "2026-01-01T00:05:00.000Z"
STAGES = ("sanitizer", "ocr", "detector")


def retrying(image: str, stage: str, attempts: int, at: str, **changes: object) -> StageRetrying:
    """Return the event of a stage that tries again."""
    return StageRetrying.model_validate(
        {
            "image_id": image, "owner": "anna", "profile": Facts(image, stages=STAGES).sanitized().profile,
            "report": report(stage).model_copy(update={"attempts": attempts}),
            "code": ErrorCode.DEPENDENCY_UNAVAILABLE, "message": "Unavailable.", "next_try_at": at, **changes,
        }
    )  # fmt: skip


async def status(image: str, tools: Tools) -> JobStatus:
    """Return what a client reads of the job."""
    record = await tools.read_model.get(image)
    assert record is not None
    return job_status(Job(f"{image}.1", image, record, None), "")


async def test_a_job_is_retrying_until_its_stages_end(tools: Tools) -> None:
    """The phase and the stage say so, with attempts, reason and time; the status that clients poll is unchanged."""
    image = new_image_id()
    facts = Facts(image, stages=STAGES)
    await index(facts.sanitized(), tools)
    assert (await status(image, tools)).phase is JobPhase.PROCESSING
    await index(retrying(image, "ocr", 3, LATER), tools)
    await index(retrying(image, "detector", 6, SOON), tools)
    found = await status(image, tools)
    assert (found.status, found.phase) == (ImageState.PROCESSING, JobPhase.RETRYING)
    assert found.retry is not None
    assert (found.retry.stage, found.retry.attempts, found.retry.next_try_at) == ("detector", 6, SOON)
    assert (found.retry.code, found.retry.message) == ("dependency-unavailable", "Unavailable.")
    view = found.stages["ocr"]
    assert (view.state, view.retrying, view.attempts, view.reason, view.next_try_at) == (
        "pending",
        True,
        3,
        "dependency-unavailable",
        LATER,
    )
    await index(facts.text(), tools)
    await index(facts.detected("cat"), tools)
    found = await status(image, tools)
    assert (found.status, found.phase, found.retry) == (ImageState.COMPLETED, JobPhase.ENDED, None)
    assert {stage.state for stage in found.stages.values()} == {"done"}


async def test_the_latest_try_wins_and_an_ended_stage_stays(tools: Tools) -> None:
    """Repeated and late events change nothing."""
    image = new_image_id()
    facts = Facts(image, stages=STAGES)
    await index(facts.sanitized(), tools)
    await index(facts.text(), tools)
    for stage, attempts, at in (("detector", 6, LATER), ("detector", 3, SOON), ("ocr", 3, SOON)):
        assert isinstance(await index(retrying(image, stage, attempts, at), tools), Emit)
    found = await status(image, tools)
    assert (found.stages["ocr"].state, found.stages["detector"].attempts) == ("done", 6)


async def test_an_image_whose_first_stage_retries_has_its_submission(tools: Tools) -> None:
    """An image that no fact has described yet is listed with what its producer sent."""
    image = new_image_id()
    await index(retrying(image, "sanitizer", 3, SOON, bucket="trip", context={"order": 7}, submitted_at=WHEN), tools)
    found = await status(image, tools)
    assert (found.phase, found.created_at) == (JobPhase.RETRYING, WHEN)
    record = await tools.read_model.get(image)
    assert record is not None
    assert (record.bucket, record.context) == ("trip", {"order": 7})


@pytest.mark.parametrize("changes", [{"owner": "ben"}, {"generation": 1}])
async def test_retries_of_another_owner_or_generation_are_dropped(tools: Tools, changes: dict[str, object]) -> None:
    """Only events of the image's owner and current generation are written."""
    image = new_image_id()
    await index(Facts(image, generation=2, stages=STAGES).sanitized(), tools)
    answer = await index(retrying(image, "ocr", 3, SOON, **{"generation": 2, **changes}), tools)
    assert isinstance(answer, Skip)
    assert (await status(image, tools)).phase is JobPhase.PROCESSING


def test_a_job_is_pending_before_any_agent_reports() -> None:
    """An accepted job without a record is pending, also at the top level."""
    image = new_image_id()
    assert job_status(Job(f"{image}.1", image, None, None), "").phase is JobPhase.PENDING
