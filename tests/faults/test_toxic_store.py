"""An object store that is slow, fails some calls, or is full: work waits, uploads are answered 503, nothing is lost."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from darkroom.local.demo import draw_sign
from gateway.client import Darkroom, Refused
from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio
from schemas.http.submissions import Submitted
from streams.settings import FilesSettings
from tests.support.deployment import Deployment, deployed, until
from tests.support.sent_images import LIGHT_AGENTS, Calm, Sent
from tests.support.tcp_proxy import Toxin
from tests.support.toxic_proxy import ToxicStore, toxic

pytestmark = pytest.mark.lengthy

SERVICE_UNAVAILABLE = 503
DEADLINE_S, DECODE_S, IN_PLACE_S = 3.0, 1.4, 0.5
POLL_S = 8.0  # a buffer of one needs at least 7
GATE_S = 12.0  # the longest wait of an event for the store
MOST_REBALANCES = 4


@pytest.fixture(scope="module")
def store(minio: LocalMinio) -> Iterator[ToxicStore]:
    """Return the proxy between the processes and MinIO; the test itself connects directly."""
    with toxic(minio.endpoint) as store:
        yield store


@pytest.fixture(scope="module")
def deployment(
    kafka: LocalKafka, minio: LocalMinio, store: ToxicStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """Return the running light agents and router, with short delays."""
    files = FilesSettings(
        endpoint=minio.endpoint,
        access_key=minio.access_key,
        secret_key=SecretStr(minio.secret_key),
        bucket="toxic",
        timeout_s=2.5,
    )
    settings = {
        "DARKROOM_FILES__ENDPOINT": store.endpoint,
        "DARKROOM_QDRANT__TIMEOUT_S": "2.5",
        "DARKROOM_BREAKER__OPEN_S": "1",
        "DARKROOM_BREAKER__GATE_S": str(GATE_S),
        "DARKROOM_RETRY__TIERS": '{"30s": 2, "5m": 4, "30m": 30}',
        "DARKROOM_RETRY__IN_PLACE_TOTAL_S": str(IN_PLACE_S),
        "DARKROOM_SANITIZER__DEADLINE_S": str(DEADLINE_S),
        "DARKROOM_SANITIZER__DECODE_WALL_S": str(DECODE_S),
        "DARKROOM_SANITIZER__BUFFER": "1",
        "DARKROOM_WORKER__MAX_POLL_INTERVAL_S": str(POLL_S),
    }
    folder = tmp_path_factory.mktemp("toxic")
    with deployed(kafka.bootstrap, folder, files=files, settings=settings) as deployment:
        deployment.start("sanitizer", "resizer", "core", "router")
        deployment.until_ready(*LIGHT_AGENTS, "router")
        yield deployment


def test_a_store_that_is_slow_and_fails_one_call_in_five(
    deployment: Deployment, store: ToxicStore, images: dict[str, bytes], calm: Calm
) -> None:
    """With slow calls of which one in five fails, every image completes after retries."""
    sent = Sent(deployment, images)
    with store.injecting(Toxin(latency_s=0.05, error_every=5)):
        sent.send(times=3)
        until(lambda: httpx.get(f"http://{store.endpoint}/").status_code == SERVICE_UNAVAILABLE, "a call failing")
        sent.check(calm)


def test_a_full_store_rejects_uploads_and_delays_work(
    deployment: Deployment, store: ToxicStore, images: dict[str, bytes], calm: Calm
) -> None:
    """On a full disk an upload is answered 503 and leaves no trace; with space again, waiting events are processed."""
    sent = Sent(deployment, images)
    known = deployment.keys("jobs/"), deployment.keys("claims/"), deployment.keys("originals/")
    picture = draw_sign()
    with Darkroom(f"http://127.0.0.1:{deployment.port}", timeout_s=60, tries=1) as client:
        with store.injecting(Toxin(full=True)):
            with pytest.raises(Refused) as refused:
                client.submit(picture)
            assert refused.value.status == SERVICE_UNAVAILABLE
            assert (deployment.keys("jobs/"), deployment.keys("claims/"), deployment.keys("originals/")) == known
            sent.send()
            until(
                lambda: "XMinioStorageFull" in deployment.log_file("sanitizer").read_text(),
                "a write to the full disk",
            )
        sent.check(calm)
        accepted: list[Submitted] = []
        until(lambda: _accepts(client, picture, accepted), "an upload being accepted")
    assert deployment.keys("jobs/") == {*known[0], f"jobs/{accepted[0].job_id}.json"}


def test_events_slower_than_the_poll_interval(
    deployment: Deployment, store: ToxicStore, images: dict[str, bytes], calm: Calm
) -> None:
    """Events slower than max.poll.interval complete, and the number of rebalances stays bounded."""
    joined = _assignments(deployment)
    sent = Sent(deployment, images)
    with store.injecting(Toxin(latency_s=2 * POLL_S)):
        sent.send(times=2)
        begun = time.monotonic()
        until(lambda: time.monotonic() > begun + 2 * POLL_S, "two poll intervals to pass")
        deployment.check_alive()
        assert not deployment.outcomes().keys() & sent.names.keys(), "the events ended during the latency"
    sent.check(calm)
    assert _assignments(deployment) - joined <= MOST_REBALANCES


def _accepts(client: Darkroom, picture: bytes, accepted: list[Submitted]) -> bool:
    try:
        accepted.append(client.submit(picture))
    except Refused as refused:
        assert refused.status == SERVICE_UNAVAILABLE
        return False
    return True


def _assignments(deployment: Deployment) -> int:
    return deployment.log_file("sanitizer").read_text().count("partitions assigned")
