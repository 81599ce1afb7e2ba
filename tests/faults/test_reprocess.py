"""A stage is reprocessed on a running system, while every image stays completed and can be downloaded."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from gateway.client import Refused
from infra.local.kafka import LocalKafka
from schemas.events.envelope import decode
from schemas.events.facts import FACTS, ImageResized, ImageSanitized
from schemas.http.jobs import JobStatus
from schemas.values import ImageState
from streams import topics
from tests.support.deployment import Deployment, deployed, until
from tests.support.forked_process import ForkedChild

pytestmark = pytest.mark.timeout(900)

VERSION = "2"


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return a deployment of the processes that reprocessing needs."""
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("reprocess")) as deployment:
        deployment.start("sanitizer", "resizer", "core", "router")
        yield deployment


@pytest.fixture(scope="module")
def completed(deployment: Deployment, images: dict[str, bytes]) -> list[str]:
    """Return the ids of completed images."""
    events = [deployment.uploaded(data) for data in images.values()]
    deployment.publish(topics.UPLOADED, *events)
    found = [event.image_id for event in events]
    deployment.until_ended(found)
    return found


def reprocess(deployment: Deployment, *arguments: str) -> str:
    """Run `darkroom reprocess`; return its output."""
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", "reprocess", *arguments],
        env={**deployment.environment, "DARKROOM_URL": f"http://127.0.0.1:{deployment.port}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def facts(
    deployment: Deployment, kind: type[ImageResized] | type[ImageSanitized]
) -> list[ImageResized | ImageSanitized]:
    """Return all facts of a type."""
    return [
        fact for record in deployment.records(topics.FACTS) if isinstance(fact := decode(record, FACTS), kind)
    ]  # fmt: skip


def watch(deployment: Deployment, image_ids: list[str], happened: Callable[[JobStatus], bool], what: str) -> None:
    """Wait until a condition is true for every image; fail if one leaves the state completed."""

    def all_of_them() -> bool:
        deployment.check_alive()
        statuses = [deployment.status(image_id) for image_id in image_ids]
        assert {status.status for status in statuses if status is not None} <= {ImageState.COMPLETED}
        return all(status is not None and happened(status) for status in statuses)

    until(all_of_them, what)


def test_an_unchanged_stage_costs_no_computation(deployment: Deployment, completed: list[str]) -> None:
    """Reprocessed without a change, every image reuses its stored result and stays completed throughout."""
    assert f"again for {len(completed)} images" in reprocess(deployment, "--stage", "resizer")
    assert [fact.run for fact in facts(deployment, ImageResized)] == [0] * len(completed)
    before = {image_id: deployment.objects(image_id) for image_id in completed}
    assert f"{len(completed)} of {len(completed)} images" in reprocess(deployment, "--stage", "resizer", "--yes")
    watch(deployment, completed, lambda status: bool(status.stages["resizer"].reused), "results reused")
    again = [fact for fact in facts(deployment, ImageResized) if fact.run]
    assert {fact.image_id for fact in again} == set(completed)
    assert all(fact.report.reused for fact in again)
    assert len({fact.run for fact in again}) == 1
    assert {image_id: deployment.objects(image_id) for image_id in completed} == before, (
        "other bytes under the same names"
    )
    deployment.check_ended_once(completed)


def test_a_new_stage_version_recomputes_only_that_stage(deployment: Deployment, completed: list[str]) -> None:
    """A new version of a stage recomputes the selected images; no other stage runs."""
    sanitized = len(facts(deployment, ImageSanitized))
    assert deployment.terminate("resizer") == 0
    module = ["tests.faults.another_version", "resizer", VERSION]
    log_file = deployment.log_file("resizer")
    deployment.children["resizer"] = ForkedChild(module, log_file=log_file, env=deployment.environment)
    chosen, other = completed[:-1], completed[-1]
    where = f"version.resizer<{VERSION} and id!={other}"
    assert f"{len(chosen)} of {len(chosen)} images" in reprocess(
        deployment, "--stage", "resizer", "--where", where, "--yes"
    )
    watch(deployment, chosen, lambda status: status.stages["resizer"].version == VERSION, "results of the new version")
    left = deployment.status(other)
    assert left is not None and left.stages["resizer"].version == "1"
    renewed = [fact for fact in facts(deployment, ImageResized) if fact.report.version == VERSION]
    assert {fact.image_id for fact in renewed} == set(chosen)
    assert not any(fact.report.reused for fact in renewed)
    assert len(facts(deployment, ImageSanitized)) == sanitized
    assert "for 0 images" in reprocess(deployment, "--stage", "resizer", "--where", where)
    deployment.check_ended_once(completed)
    with deployment.client() as client:
        assert all(client.download(image_id, size="thumbnail") for image_id in completed)


def test_a_rerun_has_its_own_parameters(deployment: Deployment, completed: list[str]) -> None:
    """The image gets the renditions of the rerun's profile, and by the next rerun those of its own again."""
    image_id = completed[1]
    where = ("--stage", "resizer", "--where", f"id={image_id}", "--yes")
    (first, *_) = _renditions(deployment, image_id)
    reprocess(deployment, *where, "--profile", '{"parameters": {"resizer": {"sides": {"tiny": 40}}}}')
    with deployment.client() as client:
        until(lambda: list(client.sizes(image_id).sizes) == ["tiny"], "the renditions of the rerun")
        assert client.download(image_id, size="tiny")
    reprocess(deployment, *where)
    until(lambda: _renditions(deployment, image_id)[-1] == first, "the renditions of the image's own profile")
    deployment.check_ended_once(completed)


def _renditions(deployment: Deployment, image_id: str) -> list[list[str]]:
    """Return the names of an image's renditions, by fact, oldest first."""
    resized = [fact for fact in facts(deployment, ImageResized) if fact.image_id == image_id]
    return [[one.name for one in fact.renditions] for fact in resized if isinstance(fact, ImageResized)]


def test_a_new_master_is_a_new_generation(deployment: Deployment, completed: list[str]) -> None:
    """Reprocessing the sanitizer creates generation 2; the old job answers `superseded`."""
    image_id = completed[0]
    reprocess(deployment, "--stage", "sanitizer", "--where", f"id={image_id}", "--yes", "--per-second", "50")

    def completed_again() -> bool:
        deployment.check_alive()
        with deployment.client() as client:
            try:
                return client.status(f"{image_id}.2").status is ImageState.COMPLETED
            except Refused:
                return False

    until(completed_again, "generation 2")
    with deployment.client() as client:
        with pytest.raises(Refused) as refusal:
            client.status(f"{image_id}.1")
        assert refusal.value.code == "superseded"
        assert client.download(image_id, size="thumbnail")
        stages = client.status(f"{image_id}.2").stages
    assert [stages[name].reused for name in ("sanitizer", "resizer")] == [True, True]
    assert len(deployment.outcomes()[image_id]) == 2
