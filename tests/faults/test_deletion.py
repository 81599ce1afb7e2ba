"""An image deleted while a stage has it in hand: the deletion wins, and takes nothing from anybody else."""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path

import psutil
import pytest

from gateway.client import Refused, Unreachable
from infra.local.kafka import LocalKafka
from schemas.events.facts import DeletionRequested, ImageSanitized
from schemas.events.intake import ImageUploaded
from schemas.events.outcomes import ImageDeleted
from schemas.http.submissions import ErasureView
from schemas.stored.erasures import ErasureState
from schemas.values import DEFAULT_OWNER, ImageState, Profile
from streams import topics
from streams.object_store.original_references import claim_prefix
from tests.support.plant import Plant, planted, until

# A worker that is stopped for a while must be the same worker afterwards.
PATIENT = {
    "DARKROOM_WORKER__SESSION_TIMEOUT_S": "120",
    "DARKROOM_WORKER__REBALANCE_TIMEOUT_S": "180",
    "DARKROOM_WORKER__LOOP_LAG_S": "150",
}
TIDY = {"DARKROOM_JANITOR__HORIZON_S": "0", "DARKROOM_RECONCILER__INTERVAL_S": "1"}
IN_HAND = "after-object:1:stop"  # the stage has stored what it made, and said nothing yet


def _uploaded(plant: Plant, data: bytes, profile: Profile) -> ImageUploaded:
    """Store an original and claim it, as a gateway does."""
    event = plant.uploaded(data, profile=profile)
    plant.put(claim_prefix(DEFAULT_OWNER, event.original.sha256) + event.image_id, b"{}")
    return event


def _until_stopped(plant: Plant, name: str) -> None:
    def stopped() -> bool:
        plant.check_alive()
        return psutil.Process(plant.children[name].pid).status() == psutil.STATUS_STOPPED

    until(stopped, f"{name} being stopped with the image in hand")


def _erasure(plant: Plant, image_id: str) -> ErasureView | None:
    with plant.client() as client:
        try:
            return client.erasure(image_id)
        except (Refused, Unreachable):
            return None


def _until_erased(plant: Plant, image_id: str, state: ErasureState) -> ErasureView:
    def reached() -> bool:
        plant.check_alive()
        found = _erasure(plant, image_id)
        return found is not None and found.state is state and found.remaining == 0

    until(reached, f"the erasure being {state}")
    found = _erasure(plant, image_id)
    assert found is not None
    return found


def _said_of(plant: Plant, image_id: str) -> set[str | None]:
    """Return the types of everything said of an image by a stage or about its deletion."""
    records = [record for topic in (topics.SANITIZED, topics.FACTS) for record in plant.records(topic)]
    return {record.header("ce_type") for record in records if record.header("ce_subject") == image_id}


def _models(models_dir: Path, models_cache: Path) -> Mapping[str, str]:
    quick = {"DARKROOM_OCR__POLICY": "tesseract"}  # EasyOCR takes long to load, and adds nothing here
    return {**quick, "DARKROOM_MODELS__DIR": str(models_dir), "DARKROOM_MODELS__CACHE": str(models_cache)}


@pytest.mark.parametrize("stage", ["sanitizer", "resizer", "ocr", "detector"])
def test_a_deletion_wins_against_the_stage_that_has_the_image(
    stage: str, kafka: LocalKafka, images: dict[str, bytes], models_dir: Path, models_cache: Path, tmp_path: Path
) -> None:
    """Deleted in mid-work, an image ends deleted, once, and leaves nothing; its twin of equal bytes is completed."""
    other = "resizer" if stage == "sanitizer" else stage
    profile, agents = Profile(stages=("sanitizer", other)), ("sanitizer", other, "indexer")
    with planted(kafka.bootstrap, tmp_path, settings={**PATIENT, **_models(models_dir, models_cache)}) as plant:
        gone, twin = (_uploaded(plant, images["formats/cat.jpg"], profile) for _ in range(2))
        plant.start("core", *({"sanitizer", other} - {stage}))
        plant.start(stage, strike=IN_HAND)
        plant.until_ready(*agents)
        plant.say(topics.UPLOADED, gone)
        _until_stopped(plant, stage)
        plant.say(topics.UPLOADED, twin)
        plant.say(topics.FACTS, DeletionRequested(image_id=gone.image_id, generation=2))
        _until_erased(plant, gone.image_id, ErasureState.ERASED)
        plant.children[stage].signal(signal.SIGCONT)
        plant.until_ended([twin.image_id])
        plant.until_idle(*agents)
        assert {kind for _, kind in plant.outcomes()[gone.image_id]} == {ImageDeleted.type}
        assert len(plant.outcomes()[gone.image_id]) == 1
        before_it = {ImageSanitized.type} if stage != "sanitizer" else set()
        assert _said_of(plant, gone.image_id) == {*before_it, DeletionRequested.type}, "the stage said something"
        assert plant.objects(gone.image_id) == {}, "what the stage had stored was not cleared away"
        assert not plant.records(topics.dead_topic(stage))
        assert not plant.records(topics.delay_topic(stage, "30s"))

        before = plant.objects(twin.image_id)
        assert plant.terminate("core") == 0
        plant.start("core", **TIDY)
        erasure = _until_erased(plant, gone.image_id, ErasureState.FINISHED)
        assert erasure.removed.originals == 0, "the twin's original"
        assert plant.keys(f"erasing/{gone.image_id}/") == set()
        assert plant.objects(twin.image_id) == before
        assert len(before) == (5 if other == "resizer" else 1)
        assert plant.keys(f"originals/{DEFAULT_OWNER}/") == {twin.original.key}
        result = plant.result(twin.image_id)
        assert result.status is ImageState.COMPLETED
        assert plant.keys("results/"), "the twin's results"
        assert plant.state(gone.image_id) in (None, ImageState.DELETED)


def test_a_worker_that_wakes_after_the_end_leaves_nothing(
    kafka: LocalKafka, images: dict[str, bytes], tmp_path: Path
) -> None:
    """A stage that stores for an image whose erasure is long finished has it cleared away, results and all."""
    agents = ("sanitizer", "resizer", "indexer")
    with planted(kafka.bootstrap, tmp_path, settings={**PATIENT, **TIDY}) as plant:
        gone = _uploaded(plant, images["formats/cat.jpg"], Profile(stages=("sanitizer", "resizer")))
        plant.start("core", "sanitizer")
        plant.start("resizer", strike=IN_HAND)
        plant.until_ready(*agents)
        plant.say(topics.UPLOADED, gone)
        _until_stopped(plant, "resizer")
        plant.say(topics.FACTS, DeletionRequested(image_id=gone.image_id, generation=2))
        _until_erased(plant, gone.image_id, ErasureState.FINISHED)
        assert plant.keys("results/") == set()
        plant.children["resizer"].signal(signal.SIGCONT)
        plant.until_idle(*agents)
        until(lambda: not any(map(plant.keys, ("images/", "originals/", "results/", "erasing/", "claims/"))), "the end")
        assert {kind for _, kind in plant.outcomes()[gone.image_id]} == {ImageDeleted.type}
        with plant.client() as client:
            assert client.erasure(gone.image_id).remaining == 0
