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
from tests.support.plant import Plant, planted, until

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
def plant(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    """Return the light agents at work, and a core that soon calls an image overdue, but looks only when asked."""
    with planted(kafka.bootstrap, tmp_path_factory.mktemp("reconciled"), settings=ON_REQUEST) as plant:
        plant.start("sanitizer", "resizer", "core")
        plant.until_ready(*AGENTS)
        yield plant


def accepted(plant: Plant, event: ImageUploaded) -> None:
    """Write the receipt of an upload, as the gateway does before it sends the event."""
    receipt = Receipt(
        job_id=event.job_id, image_id=event.image_id, owner=event.owner, generation=1, kind=ReceiptKind.UPLOAD,
        submitted_at=now(), profile=event.profile, original=event.original, filename="lost.jpg",
    )  # fmt: skip
    plant.put(receipt_key(receipt.job_id), receipt.model_dump_json().encode())


def sanitized(plant: Plant, event: ImageUploaded, master: bytes) -> ImageSanitized:
    """Store a master; return what the sanitizer would say of it, not yet produced."""
    key = image_key(event.image_id, 1, "master.png")
    plant.put(key, master)
    digest = hashlib.sha256(master).hexdigest()
    width, height = Image.open(BytesIO(master)).size
    return ImageSanitized(
        image_id=event.image_id,
        profile=event.profile,
        report=StageReport(stage="sanitizer", version="1", attempts=1, duration_ms=1),
        original=event.original,
        image=SanitizedImage(
            master=ObjectRef(bucket=plant.files.bucket, key=key, sha256=digest, size=len(master)),
            width=width, height=height, source_format="png", frames=1, perceptual_hash="0" * 16,
            dominant_colour="#112233", thumbhash="AA==",
        ),
    )  # fmt: skip


def removed(plant: Plant, key: str) -> None:
    """Remove an object, as somebody might who should not."""

    async def remove() -> None:
        async with open_files(plant.files) as files:
            await files.delete(key)

    asyncio.run(remove())


def reconcile(plant: Plant, *arguments: str) -> tuple[int, str]:
    """Run `darkroom reconcile` against the core; return its exit code and what it wrote."""
    done = subprocess.run(
        [sys.executable, "-m", "darkroom", "reconcile", *arguments, "--url", f"http://127.0.0.1:{plant.port}"],
        env={**plant.environment, "COLUMNS": "300"},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode in (0, 3), done.stdout + done.stderr
    return done.returncode, done.stdout


def looked(plant: Plant) -> ReconcileReport:
    """Ask the core to look over everything and change nothing."""
    url = f"http://127.0.0.1:{plant.port}/api/v1/admin/reconcile"
    answer = httpx.post(url, params={"dry_run": "true"}, timeout=120)
    assert answer.status_code == 200, answer.text
    return ReconcileReport.model_validate_json(answer.content)


def sent_again(plant: Plant) -> dict[str, int]:
    """Return how many events are in each agent's retry topic."""
    return {agent: len(plant.records(topics.retry_topic(agent))) for agent in AGENTS}


def test_a_lost_upload_is_shown_by_a_dry_run_and_completed_by_a_real_one(plant: Plant) -> None:
    """The event never reached Kafka: a dry run names the image and changes nothing; a real run completes it."""
    event = plant.uploaded(draw_sign())
    accepted(plant, event)
    until(lambda: looked(plant).overdue_count == 1, "it being overdue")
    code, shown = reconcile(plant, "--dry-run")
    assert code == 3
    (line,) = [line for line in shown.splitlines() if f"{event.image_id}.1" in line]
    assert "sanitizer" in line
    assert "no-fact" in line
    assert "would be sent again" in line
    assert sent_again(plant) == dict.fromkeys(AGENTS, 0)
    assert plant.keys("reconciler/") == set()
    assert plant.state(event.image_id) is ImageState.PROCESSING

    code, shown = reconcile(plant)
    assert code == 3
    assert "sent again" in shown
    plant.until_ended([event.image_id])
    assert sent_again(plant) == {"sanitizer": 1, "resizer": 0, "indexer": 0}
    assert len(plant.objects(event.image_id)) == 5

    code, shown = reconcile(plant)
    assert code == 0
    assert "Nothing is overdue" in shown
    assert plant.keys("reconciler/") == set()
    assert sent_again(plant) == {"sanitizer": 1, "resizer": 0, "indexer": 0}


def test_the_reconciler_makes_good_by_itself_what_was_lost(plant: Plant) -> None:
    """A stage that never heard, a fact that never came, a file that went: every image completes, and is whole, once."""
    master = draw_sign()
    unheard = plant.uploaded(master)
    plant.say(topics.FACTS, sanitized(plant, unheard, master))  # image.sanitized never held it
    unsaid = plant.uploaded(master + b"more")
    accepted(plant, unsaid)
    plant.say(topics.SANITIZED, sanitized(plant, unsaid, master))  # image.facts never held it
    bare = plant.uploaded(master + b"still more")
    plant.say(topics.UPLOADED, bare)
    plant.until_ended([bare.image_id])
    before = plant.objects(bare.image_id)
    removed(plant, f"{image_prefix(bare.image_id)}1/thumbnail.webp")

    assert plant.terminate("core") == 0
    plant.start("core", **BY_ITSELF)
    ids = [unheard.image_id, unsaid.image_id, bare.image_id]
    plant.until_ended(ids)
    until(lambda: plant.objects(bare.image_id) == before, "the lost file being made again")
    assert all(len(plant.objects(image_id)) >= 5 for image_id in ids)
    found = plant.outcomes()
    for image_id in ids:
        assert sorted(kind for _, kind in found[image_id]) == ["darkroom.image.completed.v1"]
    until(lambda: looked(plant).overdue_count == 0, "nothing being overdue")
    with plant.client() as client:
        assert "last pass: 2" in client.health().parts["reconciler"].detail


def test_the_reconciler_is_a_process_of_its_own(plant: Plant) -> None:
    """Where the read model is not inside the core, `darkroom reconciler` looks, says when it last did, and drains."""
    if "core" in plant.children:
        assert plant.terminate("core") == 0  # the in-process read model has one owner: here it is the reconciler
    lost = plant.uploaded(draw_sign() + b"and more")
    accepted(plant, lost)
    port = choose(0)
    plant.start("reconciler", DARKROOM_WORKER__HTTP_PORT=str(port), **BY_ITSELF)

    def said() -> str:
        plant.check_alive()
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health/ready", timeout=10).text
        except httpx.HTTPError:
            return ""

    until(lambda: "last pass: 2" in said(), "a pass")
    until(lambda: len(plant.objects(lost.image_id)) == 5, "the lost upload being worked on")
    metrics = httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10).text
    assert 'darkroom_sent_again_total{stage="sanitizer"}' in metrics
    assert plant.terminate("reconciler") == 0
