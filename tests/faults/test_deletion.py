"""An image deleted while a stage processes it: the deletion wins and affects no other image."""

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
from tests.support.deployment import Deployment, deployed, until

pytestmark = pytest.mark.lengthy

# A suspended worker must keep its group membership.
LONG_TIMEOUTS = {
    "DARKROOM_WORKER__SESSION_TIMEOUT_S": "120",
    "DARKROOM_WORKER__REBALANCE_TIMEOUT_S": "180",
    "DARKROOM_WORKER__LOOP_LAG_S": "150",
}
EAGER_JANITOR = {"DARKROOM_JANITOR__HORIZON_S": "0", "DARKROOM_RECONCILER__INTERVAL_S": "1"}
STOP_AFTER_OBJECT = "after-object:1:stop"  # the stage has stored its objects and emitted nothing


def _uploaded(deployment: Deployment, data: bytes, profile: Profile) -> ImageUploaded:
    """Store an original and a reference to it, as a gateway does."""
    event = deployment.uploaded(data, profile=profile)
    deployment.put(claim_prefix(DEFAULT_OWNER, event.original.sha256) + event.image_id, b"{}")
    return event


def _until_stopped(deployment: Deployment, name: str) -> None:
    def stopped() -> bool:
        deployment.check_alive()
        return psutil.Process(deployment.children[name].pid).status() == psutil.STATUS_STOPPED

    until(stopped, f"{name} stopped while it processes the image")


def _erasure(deployment: Deployment, image_id: str) -> ErasureView | None:
    with deployment.client() as client:
        try:
            return client.erasure(image_id)
        except (Refused, Unreachable):
            return None


def _until_erased(deployment: Deployment, image_id: str, state: ErasureState) -> ErasureView:
    def reached() -> bool:
        deployment.check_alive()
        found = _erasure(deployment, image_id)
        return found is not None and found.state is state and found.remaining == 0

    until(reached, f"the erasure being {state}")
    found = _erasure(deployment, image_id)
    assert found is not None
    return found


def _event_types(deployment: Deployment, image_id: str) -> set[str | None]:
    """Return the types of the events of an image on the sanitized and facts topics."""
    records = [record for topic in (topics.SANITIZED, topics.FACTS) for record in deployment.records(topic)]
    return {record.header("ce_type") for record in records if record.header("ce_subject") == image_id}


def _models(models_dir: Path, models_cache: Path) -> Mapping[str, str]:
    quick = {"DARKROOM_OCR__POLICY": "tesseract"}  # EasyOCR loads slowly and adds nothing here
    return {**quick, "DARKROOM_MODELS__DIR": str(models_dir), "DARKROOM_MODELS__CACHE": str(models_cache)}


@pytest.mark.parametrize("stage", ["sanitizer", "resizer", "ocr", "detector"])
def test_a_deletion_wins_against_a_stage_that_processes_the_image(
    stage: str, kafka: LocalKafka, images: dict[str, bytes], models_dir: Path, models_cache: Path, tmp_path: Path
) -> None:
    """An image deleted while it is processed ends deleted, once, and leaves nothing; its duplicate completes."""
    other = "resizer" if stage == "sanitizer" else stage
    profile, agents = Profile(stages=("sanitizer", other)), ("sanitizer", other, "indexer")
    with deployed(
        kafka.bootstrap, tmp_path, settings={**LONG_TIMEOUTS, **_models(models_dir, models_cache)}
    ) as deployment:
        gone, twin = (_uploaded(deployment, images["formats/cat.jpg"], profile) for _ in range(2))
        deployment.start("core", *({"sanitizer", other} - {stage}))
        deployment.start(stage, strike=STOP_AFTER_OBJECT)
        deployment.until_ready(*agents)
        deployment.publish(topics.UPLOADED, gone)
        _until_stopped(deployment, stage)
        deployment.publish(topics.UPLOADED, twin)
        deployment.publish(topics.FACTS, DeletionRequested(image_id=gone.image_id, generation=2))
        _until_erased(deployment, gone.image_id, ErasureState.ERASED)
        deployment.children[stage].signal(signal.SIGCONT)
        deployment.until_ended([twin.image_id])
        deployment.until_idle(*agents)
        assert {kind for _, kind in deployment.outcomes()[gone.image_id]} == {ImageDeleted.type}
        assert len(deployment.outcomes()[gone.image_id]) == 1
        earlier = {ImageSanitized.type} if stage != "sanitizer" else set()
        assert _event_types(deployment, gone.image_id) == {*earlier, DeletionRequested.type}, (
            "the stage emitted an event"
        )
        assert deployment.objects(gone.image_id) == {}, "the objects of the stage were not removed"
        assert not deployment.records(topics.dead_topic(stage))
        assert not deployment.records(topics.delay_topic(stage, "30s"))

        before = deployment.objects(twin.image_id)
        assert deployment.terminate("core") == 0
        deployment.start("core", **EAGER_JANITOR)
        erasure = _until_erased(deployment, gone.image_id, ErasureState.FINISHED)
        assert erasure.removed.originals == 0, "the twin's original"
        assert deployment.keys(f"erasing/{gone.image_id}/") == set()
        assert deployment.objects(twin.image_id) == before
        assert len(before) == (5 if other == "resizer" else 1)
        assert deployment.keys(f"originals/{DEFAULT_OWNER}/") == {twin.original.key}
        result = deployment.result(twin.image_id)
        assert result.status is ImageState.COMPLETED
        assert deployment.keys("results/"), "the twin's results"
        assert deployment.state(gone.image_id) in (None, ImageState.DELETED)


def test_a_worker_resumed_after_the_erasure_leaves_nothing(
    kafka: LocalKafka, images: dict[str, bytes], tmp_path: Path
) -> None:
    """Objects and results that a stage stores after the erasure of its image has finished are removed."""
    agents = ("sanitizer", "resizer", "indexer")
    with deployed(kafka.bootstrap, tmp_path, settings={**LONG_TIMEOUTS, **EAGER_JANITOR}) as deployment:
        gone = _uploaded(deployment, images["formats/cat.jpg"], Profile(stages=("sanitizer", "resizer")))
        deployment.start("core", "sanitizer")
        deployment.start("resizer", strike=STOP_AFTER_OBJECT)
        deployment.until_ready(*agents)
        deployment.publish(topics.UPLOADED, gone)
        _until_stopped(deployment, "resizer")
        deployment.publish(topics.FACTS, DeletionRequested(image_id=gone.image_id, generation=2))
        _until_erased(deployment, gone.image_id, ErasureState.FINISHED)
        assert deployment.keys("results/") == set()
        deployment.children["resizer"].signal(signal.SIGCONT)
        deployment.until_idle(*agents)
        until(
            lambda: not any(map(deployment.keys, ("images/", "originals/", "results/", "erasing/", "claims/"))),
            "all objects being removed",
        )
        assert {kind for _, kind in deployment.outcomes()[gone.image_id]} == {ImageDeleted.type}
        with deployment.client() as client:
            assert client.erasure(gone.image_id).remaining == 0
