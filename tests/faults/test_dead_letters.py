"""Dead letters listed, replayed and discarded, on the command line and over HTTP."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from darkroom.local.demo import draw_sign
from infra.local.kafka import LocalKafka
from schemas.events.intake import ImageUploaded
from schemas.values import ImageState
from streams import topics
from tests.support.deployment import Deployment, deployed, until

pytestmark = pytest.mark.lengthy

LETTERS = "/api/v1/admin/dead-letters"
AGENTS = ("sanitizer", "resizer", "indexer")


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the running light agents."""
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("letters")) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        deployment.until_ready(*AGENTS)
        yield deployment


def _command(deployment: Deployment, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", "dead-letters", *arguments],
        env={**deployment.environment, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def _failed_upload(deployment: Deployment, data: bytes) -> ImageUploaded:
    """Upload an original, overwrite it, and wait until its image has failed."""
    event = deployment.uploaded(data)
    deployment.put(event.original.key, b"changed content"[: len(data)])
    deployment.publish(topics.UPLOADED, event)
    deployment.until_ended([event.image_id], ImageState.FAILED)
    return event


def test_a_replay_after_a_repair_completes_the_image(deployment: Deployment) -> None:
    """A dead letter is listed and shown; replayed after the repair, its image completes; a second one does nothing."""
    data = draw_sign()
    event = _failed_upload(deployment, data)
    listed = _command(deployment, "list")
    assert event.image_id in listed
    assert "object-changed" in listed
    (letter,) = deployment.records(topics.dead_topic("sanitizer"))
    name = f"{letter.partition}-{letter.offset}"
    shown = _command(deployment, "show", "sanitizer", name)
    assert "dlq.error.code: object-changed" in shown
    assert "dlq.original.topic: image.uploaded" in shown
    assert event.body().decode() in shown
    deployment.put(event.original.key, data)

    assert f"would-replay: sanitizer {name}" in _command(deployment, "replay", "--agent", "sanitizer")
    assert not deployment.records(topics.retry_topic("sanitizer")), "a dry run replays nothing"
    assert f"replayed: sanitizer {name}" in _command(deployment, "replay", "--image", event.image_id, "--yes")
    until(lambda: deployment.state(event.image_id) is ImageState.COMPLETED, "the image completing")
    assert len(deployment.objects(event.image_id)) == 5

    assert "replayed" not in _command(deployment, "replay", "--yes")
    assert len(deployment.records(topics.retry_topic("sanitizer"))) == 1
    assert event.image_id not in _command(deployment, "list")
    assert "replayed" in _command(deployment, "list", "--all")
    kinds = sorted(kind for _, kind in deployment.outcomes()[event.image_id])
    assert kinds == ["darkroom.image.completed.v1", "darkroom.image.failed.v1"]


def test_a_replay_without_a_repair_fails_again(deployment: Deployment) -> None:
    """An event replayed before the repair is dead-lettered again with its replay count; the image stays failed."""
    event = _failed_upload(deployment, draw_sign() + b"more")
    assert "replayed" in _command(deployment, "replay", "--image", event.image_id, "--yes")
    deployment.until_idle(*AGENTS)
    again = [r for r in deployment.records(topics.dead_topic("sanitizer")) if r.header("ce_subject") == event.image_id]
    assert [r.header("replay.count") for r in again] == [None, "1"]
    assert {r.value for r in again} == {event.body()}
    assert {r.header("dlq.original.topic") for r in again} == {"image.uploaded"}
    assert deployment.result(event.image_id).status is ImageState.FAILED


def test_a_discarded_dead_letter_is_never_replayed(deployment: Deployment) -> None:
    """A discarded dead letter leaves the list, keeps its reason on record, and is never replayed."""
    event = _failed_upload(deployment, draw_sign() + b"still more")
    before = len(deployment.records(topics.retry_topic("sanitizer")))
    assert "would-discard" in _command(deployment, "discard", "--reason", "a test", "--image", event.image_id)
    assert event.image_id in _command(deployment, "list")
    assert "discarded" in _command(deployment, "discard", "--reason", "a test", "--image", event.image_id, "--yes")
    assert event.image_id not in _command(deployment, "list")
    assert event.image_id not in _command(deployment, "replay", "--image", event.image_id, "--yes")
    assert len(deployment.records(topics.retry_topic("sanitizer"))) == before
    assert "discarded" in _command(deployment, "list", "--all", "--image", event.image_id)


def test_over_http_a_dead_letter_is_listed_shown_and_replayed_once(deployment: Deployment) -> None:
    """Over HTTP a dead letter is listed without its body, shown with it, and replayed once; its image completes."""
    data = draw_sign() + b"over HTTP"
    event = _failed_upload(deployment, data)
    with httpx.Client(base_url=f"http://127.0.0.1:{deployment.port}", timeout=60) as http:
        only = {"image_id": event.image_id}
        listed = http.get(LETTERS, params=only)
        assert listed.status_code == 200, listed.text
        (letter,) = listed.json()["letters"]
        assert (letter["agent"], letter["code"], letter["topic"]) == ("sanitizer", "object-changed", "image.uploaded")
        shown = http.get(f"{LETTERS}/sanitizer/{letter['id']}", params={"payload": True}).json()
        assert shown["payload"] == event.body().decode()
        deployment.put(event.original.key, data)

        (dry,) = http.post(f"{LETTERS}/replay", json=only).json()["acts"]
        assert dry["act"] == "would-replay"
        (done,) = http.post(f"{LETTERS}/replay", json={**only, "dry_run": False}).json()["acts"]
        assert (done["act"], done["id"]) == ("replayed", letter["id"])
        until(lambda: deployment.state(event.image_id) is ImageState.COMPLETED, "the image completing")
        assert http.post(f"{LETTERS}/replay", json={**only, "dry_run": False}).json()["acts"] == []
        assert http.get(LETTERS, params=only).json()["letters"] == []
        (handled,) = http.get(LETTERS, params={**only, "handled": True}).json()["letters"]
        assert handled["handled"] == "replayed"

        seen = []
        cursor: dict[str, str] = {}
        while True:
            page = http.get(LETTERS, params={"handled": True, "limit": 1, **cursor}).json()
            seen += [(letter["agent"], letter["id"]) for letter in page["letters"]]
            if "next_cursor" not in page:
                break
            cursor = {"cursor": page["next_cursor"]}
        letters = deployment.records(topics.dead_topic("sanitizer"))
        assert sorted(seen) == sorted(("sanitizer", f"{letter.partition}-{letter.offset}") for letter in letters)


def test_a_failed_image_is_listed_and_counted(deployment: Deployment) -> None:
    """A failed image is listed with stage, code and dead letter; statistics and health cover the whole system."""
    event = _failed_upload(deployment, draw_sign() + b"to be counted")
    with httpx.Client(base_url=f"http://127.0.0.1:{deployment.port}", timeout=60) as http:
        failed = http.get("/api/v1/health/failed", params={"limit": 1}).json()["images"][0]
        assert (failed["image_id"], failed["stage"], failed["code"]) == (event.image_id, "sanitizer", "object-changed")
        (letter,) = http.get(failed["dead_letters_url"]).json()["letters"]
        assert letter["image_id"] == event.image_id

        found: dict[str, Any] = {}

        def counted() -> bool:
            found.update(http.get("/api/v1/health/stats").json())
            return {"rates", "stages", "storage", "queues"} <= found.keys() and found["rates"]["failed"]["15"] > 0

        until(counted, "all statistics")
        assert found["of"] == "everybody"
        assert found["images"]["failed"] >= 1
        assert found["rates"]["accepted"]["15"] > 0
        assert found["stages"]["counts"]["sanitizer"]["failed"] >= 1
        assert found["storage"]["kinds"]["originals"]["objects"] >= 1
        assert found["queues"]["sanitizer"]["waiting"] >= 0

        parts = http.get("/health/ready").json()["parts"]
        assert (parts["kafka"]["state"], parts["files"]["breaker"], parts["vectors"]["breaker"]) == (
            "ok",
            "closed",
            "closed",
        )
        assert parts["kafka"]["latency_ms"] > 0
        assert (parts["agents"]["state"], "ocr" in parts["agents"]["detail"]) == ("down", True)
