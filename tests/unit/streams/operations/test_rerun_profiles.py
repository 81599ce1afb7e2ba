"""Reruns with a profile: other parameters for one rerun, and stages that the image never passed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import JsonValue

from agents.indexing.record_facts import conclude
from agents.indexing.record_facts import record as record_fact
from agents.stages.resizer import STAGE as RESIZER
from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageUploaded
from schemas.events.outcomes import ImageCompleted, Outcome
from schemas.stored.receipts import Receipt
from schemas.values import ImageState, Profile, StageState
from streams.object_store.keys import receipt_key
from streams.object_store.tombstones import Tombstones
from streams.operations.reprocess_jobs import ReprocessJobs, drafted
from streams.operations.rerun_events import RerunSkipped, SkipReason, WrongProfile, rerun_analysis
from streams.read_model.records import ImageRecord
from tests.support.facts import Facts
from tests.support.image_stages import opened
from tests.support.read_models import merge
from tests.support.reprocessing import Backends, open_backends

SMALL = {"sides": {"small": 100}}
FEW = ("sanitizer", "resizer", "ocr")


@pytest.fixture
async def backends(tmp_path: Path) -> AsyncIterator[Backends]:
    """Return empty backends."""
    async with open_backends(tmp_path) as found:
        yield found


async def record_of(backends: Backends, image: str) -> ImageRecord:
    record = await backends.read_model.get(image)
    assert record is not None
    return record


def adding(*stages: str) -> Profile:
    return Profile(stages=stages)


async def test_parameters_of_a_job_replace_those_of_the_image(backends: Backends, tmp_path: Path) -> None:
    """The event has them, stage by stage, the result is stored under their name, and the record keeps the image's."""
    (image,) = await backends.complete()
    own: dict[str, JsonValue] = {"resizer": {"sides": {"huge": 4000}}, "detector": {"confidence": 0.6}}
    await merge(backends.read_model, image, 1, {"parameters": own})
    job = await ReprocessJobs(backends.files).start(
        drafted("resizer", "", profile=Profile(stages=(), parameters={"resizer": SMALL}))
    )
    assert (await backends.finish(job)).done == 1
    ((target, event),) = backends.emitted()
    assert target == "resizer.retry"
    assert isinstance(event, ImageSanitized)
    assert event.profile.parameters == {"resizer": SMALL, "detector": {"confidence": 0.6}}
    assert RESIZER.once is not None
    async with opened(RESIZER, tmp_path / "resizer") as (_, tools):
        assert RESIZER.once.parameters(event, tools)["sides"] == SMALL["sides"]
    await backends.record(Facts(image, run=job.run).resized())
    record = await record_of(backends, image)
    assert record.parameters == own
    assert rerun_analysis(record, "resizer", job.run + 1).event.profile.parameters == own


async def test_a_restarted_runner_keeps_the_profile_of_a_job(backends: Backends) -> None:
    """The profile is stored with the job, and is in the events after a restart as in those before."""
    await backends.complete(30)
    asked = Profile(stages=(), parameters={"resizer": SMALL})
    job = await ReprocessJobs(backends.files).start(drafted("resizer", "", per_second=5, profile=asked))
    await backends.runner().run_due()
    assert 0 < len(backends.emitted()) < 30
    ended = await backends.finish(job)
    assert (ended.profile, ended.done) == (asked, 30)
    assert [event.profile.parameters for _, event in backends.emitted()] == [{"resizer": SMALL}] * 30


async def test_an_added_stage_runs_for_images_that_never_passed_it(backends: Backends) -> None:
    """An image without the stage passes it, once, besides the stage that is rerun; the others are rerun alone."""
    (without,) = await backends.complete(stages=FEW)
    (with_all,) = await backends.complete()
    job = await ReprocessJobs(backends.files).start(drafted("ocr", "", profile=adding("detector")))
    assert (await backends.finish(job)).done == 2
    assert [(target, event.image_id) for target, event in backends.emitted()] == [
        ("ocr.retry", without), ("detector.retry", without), ("ocr.retry", with_all),
    ]  # fmt: skip
    assert all(event.profile.requires("detector") for _, event in backends.emitted())
    await backends.record(Facts(without, run=job.run).detected("cat"), Facts(without, run=job.run).text())
    again = rerun_analysis(await record_of(backends, without), "ocr", job.run + 1, adding("detector"))
    assert again.targets == ("ocr.retry",)


async def test_the_rerun_stage_itself_can_be_added(backends: Backends) -> None:
    """Without the profile the image is skipped; afterwards the stage belongs to its reruns, also of the sanitizer."""
    (image,) = await backends.complete(stages=FEW)
    before = await record_of(backends, image)
    with pytest.raises(RerunSkipped) as skipped:
        rerun_analysis(before, "detector", 7)
    assert skipped.value.reason is SkipReason.NOT_IN_PROFILE
    assert rerun_analysis(before, "detector", 7, adding("detector")).targets == ("detector.retry",)
    await backends.record(Facts(image, run=7).detected("cat"))
    after = await record_of(backends, image)
    assert rerun_analysis(after, "detector", 8).targets == ("detector.retry",)
    await backends.finish(await ReprocessJobs(backends.files).start(drafted("sanitizer", "")))
    ((_, event),) = backends.emitted()
    assert event.profile.stages == (*FEW, "detector")


async def test_only_the_added_stage_runs_if_the_image_lacks_both(backends: Backends) -> None:
    """The stage that the image's profile omits and the rerun does not add stays omitted."""
    (image,) = await backends.complete(stages=("sanitizer", "resizer"))
    rerun = rerun_analysis(await record_of(backends, image), "ocr", 7, adding("detector"))
    assert rerun.targets == ("detector.retry",)


@pytest.mark.parametrize("ended", [StageState.DONE, StageState.FAILED, StageState.SKIPPED])
async def test_an_added_stage_never_changes_how_an_image_ended(backends: Backends, ended: StageState) -> None:
    """However it ends, the completed image stays completed, and no second outcome is emitted."""
    (image,) = await backends.complete(stages=FEW)
    rerun = rerun_analysis(await record_of(backends, image), "detector", 7, adding("detector"))
    facts = Facts(image, run=7, stages=rerun.event.profile.stages)
    fact = {
        StageState.DONE: lambda: facts.detected("cat"),
        StageState.FAILED: lambda: facts.failed("detector"),
        StageState.SKIPPED: lambda: facts.skipped("detector"),
    }[ended]()
    known = await record_fact(fact, backends.read_model, Tombstones(backends.files))
    assert known is not None
    assert known.stages["detector"].state is ended
    assert (known.state, known.required) == (ImageState.COMPLETED, FEW)
    assert await conclude(fact, known, backends.read_model) is None


async def test_the_outcome_of_a_repaired_image_has_its_own_profile(backends: Backends) -> None:
    """A rerun that completes a failed image emits the outcome with the image's profile, not that of the rerun."""
    (image,) = await backends.complete(stages=FEW)
    facts = Facts(image, stages=FEW)
    await merge(backends.read_model, image, 1, {"state": ImageState.FAILED.value})
    fact = Facts(image, run=7, stages=(*FEW, "detector")).text()
    known = await record_fact(fact, backends.read_model, Tombstones(backends.files))
    assert known is not None
    outcome: Outcome | None = await conclude(fact, known, backends.read_model)
    assert isinstance(outcome, ImageCompleted)
    assert outcome.profile == facts.sanitized().profile


async def test_a_new_generation_has_the_profile_of_the_job(backends: Backends) -> None:
    """The receipt and the event of a rerun sanitizer have the image's stages, the added ones, and the parameters."""
    (image,) = await backends.complete(stages=FEW)
    asked = Profile(stages=("detector",), parameters={"detector": {"confidence": 0.9}})
    job = await ReprocessJobs(backends.files).start(drafted("sanitizer", "", profile=asked))
    await backends.finish(job)
    ((_, event),) = backends.emitted()
    assert isinstance(event, ImageUploaded)
    assert event.profile == Profile(stages=(*FEW, "detector"), parameters=asked.parameters)
    receipt = Receipt.model_validate_json(await backends.files.get(receipt_key(f"{image}.2")))
    assert receipt.profile == event.profile


def test_parameters_without_an_effect_are_refused() -> None:
    """Parameters of a stage that the rerun does not run name the field; those of an added one, or of any, do not."""
    parameters = {"detector": {"confidence": 0.9}}
    with pytest.raises(WrongProfile, match="does not run detector") as error:
        drafted("ocr", "", profile=Profile(stages=(), parameters=parameters))
    assert error.value.field == "profile.parameters.detector"
    for stage, added in (("ocr", ("detector",)), ("detector", ()), ("sanitizer", ())):
        asked = Profile(stages=added, parameters=parameters)
        assert drafted(stage, "", profile=asked).profile == asked
