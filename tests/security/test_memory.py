"""Memory of a real gateway during an upload of 1 GB."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import httpx
import psutil
import pytest

from infra.local.kafka import LocalKafka
from infra.local.minio import LocalMinio
from streams.settings import FilesSettings
from tests.support.deployment import deployed
from tests.support.gateway_components import JPEG, UPLOAD
from tests.support.gateway_processes import start_gateways

GIGABYTE = 1_000_000_000
MEBIBYTE = 1 << 20
ALLOWED = 64 * MEBIBYTE
BOUNDARY = "the-end-of-a-part"


class Watch:
    """Samples the resident memory of a process until it exits the context."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.before = self.peak = self._process.memory_info().rss
        self.samples = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.wait(0.02):
            self.peak = max(self.peak, self._process.memory_info().rss)
            self.samples += 1


def form(size: int) -> Iterator[bytes]:
    """Generate a form of one file of this size, which begins like a JPEG."""
    yield (f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="large.jpg"\r\n\r\n'.encode() + JPEG)
    left, chunk = size - len(JPEG), bytes(MEBIBYTE)
    while left:
        yield chunk[:left]
        left -= min(left, len(chunk))
    yield f"\r\n--{BOUNDARY}--\r\n".encode()


def send(url: str, size: int) -> httpx.Response:
    """Upload a file of this size."""
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return httpx.post(url + UPLOAD, content=form(size), headers=headers, timeout=240)


@pytest.mark.parametrize("store", ["folder", "minio"])
def test_an_upload_of_1_gb_takes_at_most_64_mib(
    store: str, kafka: LocalKafka, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """An upload of 1 GB raises the gateway's resident memory by 64 MiB at most."""
    files = FilesSettings(directory=tmp_path / "objects")
    if store == "minio":
        minio: LocalMinio = request.getfixturevalue("minio")
        files = FilesSettings(
            endpoint=minio.endpoint, access_key=minio.access_key, secret_key=minio.secret_key, bucket="large"
        )
    patient = {
        "DARKROOM_GATEWAY__MAX_UPLOAD_BYTES": str(GIGABYTE),
        "DARKROOM_GATEWAY__MAX_SPOOL_BYTES": str(GIGABYTE),
        "DARKROOM_GATEWAY__STORAGE_TIMEOUT_S": "180",
        "DARKROOM_FILES__TIMEOUT_S": "120",
    }
    with deployed(kafka.bootstrap, tmp_path, files=files, agents=()) as deployment:
        (url,) = start_gateways(deployment, 1, **patient)
        assert send(url, 3 * MEBIBYTE).status_code == 202  # what the first upload loads is no part of it
        with Watch(deployment.children["gateway#0"].pid) as watch:
            answer = send(url, GIGABYTE)
        assert answer.status_code == 202, answer.text
        assert watch.samples > 20
        grown = watch.peak - watch.before
        assert grown <= ALLOWED, f"{grown / MEBIBYTE:.0f} MiB"
        assert len(deployment.keys("originals/")) == 2
        for key in deployment.keys("originals/"):
            deployment.delete(key)  # pytest keeps folders
