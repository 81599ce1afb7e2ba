"""Events and files removed on purpose, on a real Kafka: the reconciler detects them and restores the images."""

from __future__ import annotations

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from io import BytesIO

import httpx
import pytest
from PIL import Image

from darkroom.local.demo import draw_sign
from infra.local.kafka import LocalKafka
from infra.local.ports import choose
from schemas.events.envelope import now
from schemas.events.facts import ImageSanitized
from schemas.events.intake import ImageUploaded
from schemas.http.reconciliation import ReconcileReport
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.stored.results import SanitizedImage
from schemas.values import ImageState, ObjectRef, StageReport
from streams import topics
from streams.object_store.factory import open_files
from streams.object_store.keys import image_key, image_prefix, receipt_key
from tests.support.deployment import Deployment, deployed, until

AGENTS = ("sanitizer", "resizer", "indexer")
ON_REQUEST = {"DARKROOM_RECONCILER__INTERVAL_S": "100000", "DARKROOM_RECONCILER__OVERDUE_S": "2"}
BY_ITSELF = {
    "DARKROOM_RECONCILER__INTERVAL_S": "1",
    "DARKROOM_RECONCILER__OVERDUE_S": "2",
    # On a slow machine a try may take longer than this; further tries are harmless.
    "DARKROOM_RECONCILER__AGAIN_S": "30",
    "DARKROOM_RECONCILER__TRIES": "10",
}


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the running light agents, and a core with a short overdue time that reconciles only on request."""
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("reconciled"), settings=ON_REQUEST) as deployment:
        deployment.start("sanitizer", "resizer", "core")
        deployment.until_ready(*AGENTS)
        yield deployment


def accepted(deployment: Deployment, event: ImageUploaded) -> None:
    """Write the receipt of an upload, as the gateway does before it sends the event."""
    receipt = Receipt(
        job_id=event.job_id, image_id=event.image_id, owner=event.owner, generation=1, kind=ReceiptKind.UPLOAD,
        submitted_at=now(), profile=event.profile, original=event.original, filename="lost.jpg",
    )  # fmt: skip
    deployment.put(receipt_key(receipt.job_id), receipt.model_dump_json().encode())


def sanitized(deployment: Deployment, event: ImageUploaded, master: bytes) -> ImageSanitized:
    """Store a master; return its ImageSanitized event without producing it."""
    key = image_key(event.image_id, 1, "master.png")
    deployment.put(key, master)
    digest = hashlib.sha256(master).hexdigest()
    width, height = Image.open(BytesIO(master)).size
    return ImageSanitized(
        image_id=event.image_id,
        profile=event.profile,
        report=StageReport(stage="sanitizer", version="1", attempts=1, duration_ms=1),
        original=event.original,
        image=SanitizedImage(
            master=ObjectRef(bucket=deployment.files.bucket, key=key, sha256=digest, size=len(master)),
            width=width, height=height, source_format="png", frames=1, perceptual_hash="0" * 16,
            dominant_colour="#112233", thumbhash="AA==",
        ),
    )  # fmt: skip


def removed(deployment: Deployment, key: str) -> None:
    """Remove an object behind the back of the system."""

    async def remove() -> None:
        async with open_files(deployment.files) as files:
            await files.delete(key)

    asyncio.run(remove())


def reconcile(deployment: Deployment, *arguments: str) -> tuple[int, str]:
    """Run `darkroom reconcile` against the core; return its exit code and output."""
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", "reconcile", *arguments, "--url", f"http://127.0.0.1:{deployment.port}"],
        env={**deployment.environment, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    return done.returncode, done.stdout


def dry_run(deployment: Deployment) -> ReconcileReport:
    """Request a dry run of the reconciler."""
    url = f"http://127.0.0.1:{deployment.port}/api/v1/admin/reconcile"
    answer = httpx.post(url, params={"dry_run": "true"}, timeout=120)
    assert answer.status_code == 200, answer.text
    return ReconcileReport.model_validate_json(answer.content)


def sent_again(deployment: Deployment) -> dict[str, int]:
    """Return the number of events in each agent's retry topic."""
    return {agent: len(deployment.records(topics.retry_topic(agent))) for agent in AGENTS}


def test_a_dry_run_reports_a_lost_upload_and_a_run_completes_it(deployment: Deployment) -> None:
    """The upload event never reached Kafka: a dry run reports the image and changes nothing; a run completes it."""
    event = deployment.uploaded(draw_sign())
    accepted(deployment, event)
    until(lambda: dry_run(deployment).overdue_count == 1, "the image being overdue")
    code, shown = reconcile(deployment, "--dry-run")
    assert code == 3
    (line,) = [line for line in shown.splitlines() if f"{event.image_id}.1" in line]
    assert "sanitizer" in line
    assert "no-fact" in line
    assert "would be sent again" in line
    assert sent_again(deployment) == dict.fromkeys(AGENTS, 0)
    assert deployment.keys("reconciler/") == set()
    assert deployment.state(event.image_id) is ImageState.PROCESSING

    code, shown = reconcile(deployment)
    assert code == 3
    assert "sent again" in shown
    deployment.until_ended([event.image_id])
    assert sent_again(deployment) == {"sanitizer": 1, "resizer": 0, "indexer": 0}
    assert len(deployment.objects(event.image_id)) == 5

    code, shown = reconcile(deployment)
    assert code == 0
    assert "Nothing is overdue" in shown
    assert deployment.keys("reconciler/") == set()
    assert sent_again(deployment) == {"sanitizer": 1, "resizer": 0, "indexer": 0}


def test_the_reconciler_restores_lost_events_and_files(deployment: Deployment) -> None:
    """A lost stage event, a lost fact and a removed file: every image completes with all files, once."""
    master = draw_sign()
    lost_event = deployment.uploaded(master)
    deployment.publish(topics.FACTS, sanitized(deployment, lost_event, master))  # never produced to image.sanitized
    lost_fact = deployment.uploaded(master + b"more")
    accepted(deployment, lost_fact)
    deployment.publish(topics.SANITIZED, sanitized(deployment, lost_fact, master))  # never produced to image.facts
    lost_file = deployment.uploaded(master + b"still more")
    deployment.publish(topics.UPLOADED, lost_file)
    deployment.until_ended([lost_file.image_id])
    before = deployment.objects(lost_file.image_id)
    removed(deployment, f"{image_prefix(lost_file.image_id)}1/thumbnail.webp")

    assert deployment.terminate("core") == 0
    deployment.start("core", **BY_ITSELF)
    ids = [lost_event.image_id, lost_fact.image_id, lost_file.image_id]
    deployment.until_ended(ids)
    until(lambda: deployment.objects(lost_file.image_id) == before, "the lost file being written again")
    assert all(len(deployment.objects(image_id)) >= 5 for image_id in ids)
    found = deployment.outcomes()
    for image_id in ids:
        assert sorted(kind for _, kind in found[image_id]) == ["darkroom.image.completed.v1"]
    until(lambda: dry_run(deployment).overdue_count == 0, "no image being overdue")
    with deployment.client() as client:
        assert "last pass: 2" in client.health().parts["reconciler"].detail


def test_the_reconciler_runs_as_its_own_process(deployment: Deployment) -> None:
    """`darkroom reconciler` reconciles outside the core, reports its last pass as readiness, and drains on SIGTERM."""
    if "core" in deployment.children:
        assert deployment.terminate("core") == 0  # an embedded read model has one owner: here the reconciler
    lost = deployment.uploaded(draw_sign() + b"and more")
    accepted(deployment, lost)
    port = choose(0)
    deployment.start("reconciler", DARKROOM_WORKER__HTTP_PORT=str(port), **BY_ITSELF)

    def readiness() -> str:
        deployment.check_alive()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=10).text
        except httpx.HTTPError:
            return ""

    until(lambda: "last pass: 2" in readiness(), "a pass")
    until(lambda: len(deployment.objects(lost.image_id)) == 5, "the lost upload being processed")
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert 'darkroom_sent_again_total{stage="sanitizer"}' in metrics
    assert deployment.terminate("reconciler") == 0
