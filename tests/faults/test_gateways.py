"""The same bytes uploaded to two gateways at once: two images share one original, and deleting one keeps the other."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from darkroom.local.demo import draw_turned
from gateway.client import Darkroom
from infra.local.kafka import LocalKafka
from schemas.http.jobs import JobResult
from schemas.http.submissions import Submitted
from schemas.values import ImageState
from streams import topics
from tests.support.deployment import PATIENCE_S, Deployment, deployed, until
from tests.support.gateway_processes import start_gateways

pytestmark = pytest.mark.lengthy

ROUNDS = 3


def test_two_gateways_given_the_same_bytes_at_once(kafka: LocalKafka, tmp_path: Path) -> None:
    """Both uploads are accepted and complete on one original; deleting one image leaves the other whole."""
    quick = {"DARKROOM_OCR__POLICY": "tesseract"}  # EasyOCR loads slowly and adds nothing here
    with deployed(kafka.bootstrap, tmp_path, settings=quick) as deployment:
        deployment.start("core", *(agent for agent in topics.AGENTS if agent not in {"fetcher", "indexer"}))
        gateways = start_gateways(deployment, 2)
        with ThreadPoolExecutor(2) as both:
            jobs = [
                list(both.map(_submit, gateways, [draw_turned() + bytes([number])] * 2)) for number in range(ROUNDS)
            ]
        deployment.until_ready("sanitizer", "resizer", "ocr", "detector", "embedder", "indexer")
        for pair in jobs:
            assert len({job.image_id for job in pair}) == 2
            assert [_end(deployment, job).status for job in pair] == [ImageState.COMPLETED] * 2
        assert len(deployment.keys("originals/")) == ROUNDS
        assert len(deployment.keys("claims/")) == 2 * 2 * ROUNDS  # one per image on its original and on its master

        with deployment.client() as client:
            for gone, kept in jobs:
                before = deployment.objects(kept.image_id)
                client.delete(gone.image_id)
                until(lambda at=gone.image_id: not deployment.objects(at), "the deleted image being erased")  # type: ignore[misc]
                assert deployment.objects(kept.image_id) == before
                assert client.download(kept.image_id, size="original")
        deployment.until_idle("indexer")
        assert len(deployment.keys("originals/")) == ROUNDS
        assert len(deployment.keys("claims/")) == 2 * ROUNDS


def _submit(gateway: str, data: bytes) -> Submitted:
    with Darkroom(gateway) as client:
        return client.submit(data)


def _end(deployment: Deployment, job: Submitted) -> JobResult:
    with deployment.client() as client:
        return client.wait(job.job_id, timeout_s=PATIENCE_S)
