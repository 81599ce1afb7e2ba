"""What was lost on purpose, on a real Kafka: the reconciler finds what should have followed, and it follows."""

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
    # On a busy machine one try may take longer to have an effect than this; a few more are harmless.
    "DARKROOM_RECONCILER__AGAIN_S": "30",
    "DARKROOM_RECONCILER__TRIES": "10",
}


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return the light agents at work, and a core that soon calls an image overdue, but looks only when asked."""
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
    """Store a master; return what the sanitizer would say of it, not yet produced."""
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
    """Remove an object, as somebody might who should not."""

    async def remove() -> None:
        async with open_files(deployment.files) as files:
            await files.delete(key)

    asyncio.run(remove())


def reconcile(deployment: Deployment, *arguments: str) -> tuple[int, str]:
    """Run `darkroom reconcile` against the core; return its exit code and what it wrote."""
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


def looked(deployment: Deployment) -> ReconcileReport:
    """Ask the core to look over everything and change nothing."""
    url = f"http://127.0.0.1:{deployment.port}/api/v1/admin/reconcile"
    answer = httpx.post(url, params={"dry_run": "true"}, timeout=120)
    assert answer.status_code == 200, answer.text
    return ReconcileReport.model_validate_json(answer.content)


def sent_again(deployment: Deployment) -> dict[str, int]:
    """Return how many events are in each agent's retry topic."""
    return {agent: len(deployment.records(topics.retry_topic(agent))) for agent in AGENTS}


def test_a_lost_upload_is_shown_by_a_dry_run_and_completed_by_a_real_one(deployment: Deployment) -> None:
    """The event never reached Kafka: a dry run names the image and changes nothing; a real run completes it."""
    event = deployment.uploaded(draw_sign())
    accepted(deployment, event)
    until(lambda: looked(deployment).overdue_count == 1, "it being overdue")
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


def test_the_reconciler_makes_good_by_itself_what_was_lost(deployment: Deployment) -> None:
    """A stage that never heard, a fact that never came, a file that went: every image completes, and is whole, once."""
    master = draw_sign()
    unheard = deployment.uploaded(master)
    deployment.publish(topics.FACTS, sanitized(deployment, unheard, master))  # image.sanitized never held it
    unsaid = deployment.uploaded(master + b"more")
    accepted(deployment, unsaid)
    deployment.publish(topics.SANITIZED, sanitized(deployment, unsaid, master))  # image.facts never held it
    bare = deployment.uploaded(master + b"still more")
    deployment.publish(topics.UPLOADED, bare)
    deployment.until_ended([bare.image_id])
    before = deployment.objects(bare.image_id)
    removed(deployment, f"{image_prefix(bare.image_id)}1/thumbnail.webp")

    assert deployment.terminate("core") == 0
    deployment.start("core", **BY_ITSELF)
    ids = [unheard.image_id, unsaid.image_id, bare.image_id]
    deployment.until_ended(ids)
    until(lambda: deployment.objects(bare.image_id) == before, "the lost file being made again")
    assert all(len(deployment.objects(image_id)) >= 5 for image_id in ids)
    found = deployment.outcomes()
    for image_id in ids:
        assert sorted(kind for _, kind in found[image_id]) == ["darkroom.image.completed.v1"]
    until(lambda: looked(deployment).overdue_count == 0, "nothing being overdue")
    with deployment.client() as client:
        assert "last pass: 2" in client.health().parts["reconciler"].detail


def test_the_reconciler_is_a_process_of_its_own(deployment: Deployment) -> None:
    """Where the read model is not inside the core, `darkroom reconciler` looks, says when it last did, and drains."""
    if "core" in deployment.children:
        assert deployment.terminate("core") == 0  # the in-process read model has one owner: here it is the reconciler
    lost = deployment.uploaded(draw_sign() + b"and more")
    accepted(deployment, lost)
    port = choose(0)
    deployment.start("reconciler", DARKROOM_WORKER__HTTP_PORT=str(port), **BY_ITSELF)

    def said() -> str:
        deployment.check_alive()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=10).text
        except httpx.HTTPError:
            return ""

    until(lambda: "last pass: 2" in said(), "a pass")
    until(lambda: len(deployment.objects(lost.image_id)) == 5, "the lost upload being worked on")
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert 'darkroom_sent_again_total{stage="sanitizer"}' in metrics
    assert deployment.terminate("reconciler") == 0
