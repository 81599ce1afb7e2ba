"""Resumable uploads with a third-party tus client: connections break and gateways are killed."""

from __future__ import annotations

import hashlib
import os
import random
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from tusclient.client import TusClient

from gateway.settings import GatewaySettings
from infra.local.kafka import LocalKafka
from schemas.http.resumable import UploadState, UploadView
from schemas.stored.receipts import Receipt
from streams.object_store.keys import original_key, receipt_key
from tests.security.test_memory import ALLOWED, MEBIBYTE, Watch
from tests.support.deployment import KILLED, Deployment, deployed, until
from tests.support.gateway_components import JPEG
from tests.support.gateway_processes import start_gateways, until_live

UPLOADS = "/api/v1/uploads"
TUS = {"Tus-Resumable": "1.0.0"}
PART = {**TUS, "Content-Type": "application/offset+octet-stream"}
RETRYING = {"retries": 20, "retry_delay": 1}  # a gateway that just started may still look for Kafka
PIECE = 256 << 10
LARGE = 256 * MEBIBYTE


@pytest.fixture(scope="module")
def deployment(kafka: LocalKafka, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Return topics and a store for gateways."""
    settings = {
        "DARKROOM_GATEWAY__PIECE_BYTES": str(PIECE),
        "DARKROOM_GATEWAY__MAX_UPLOAD_BYTES": str(LARGE),
    }
    with deployed(kafka.bootstrap, tmp_path_factory.mktemp("tus"), agents=(), settings=settings) as found:
        yield found


@pytest.fixture(scope="module")
def gateway(deployment: Deployment) -> str:
    """Return the base URL of a running gateway."""
    return start_gateways(deployment, 1)[0]


def begin(gateway: str, size: int) -> str:
    """Create an upload; return its URL."""
    answer = httpx.post(gateway + UPLOADS, headers={**TUS, "Upload-Length": str(size)}, timeout=60)
    assert answer.status_code == 201, answer.text
    return answer.headers["location"]


def half_sent(url: str, offset: int, data: bytes, announced: int) -> socket.socket:
    """Send less than the announced Content-Length; return the open connection."""
    at = urlsplit(url)
    connection = socket.create_connection((at.hostname, at.port), timeout=60)
    headers = {**PART, "Host": at.netloc, "Upload-Offset": str(offset), "Content-Length": str(announced)}
    lines = [f"PATCH {at.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    connection.sendall("\r\n".join(lines).encode() + data)
    return connection


def offset_of(url: str) -> int:
    """Return the Upload-Offset of an upload; 0 if the response has none."""
    answer = httpx.head(url, headers=TUS, timeout=60)
    return int(answer.headers.get("upload-offset", 0))


def kill(deployment: Deployment) -> None:
    """Kill the gateway with SIGKILL."""
    child = deployment.children["gateway#0"]
    child.kill()
    assert child.exit_code == KILLED


def start_again(deployment: Deployment, gateway: str, **settings: str) -> None:
    """Restart the gateway on its port, and wait until it is live."""
    deployment.start("gateway#0", DARKROOM_GATEWAY__PORT=str(urlsplit(gateway).port), **settings)
    until_live(deployment, gateway)


def image_of(deployment: Deployment, url: str, data: bytes) -> str:
    """Assert that exactly one image has these bytes and that the upload names it; return its id."""
    view = UploadView.model_validate_json(httpx.get(url, timeout=60).content)
    assert view.state is UploadState.ACCEPTED
    assert view.job is not None
    digest = hashlib.sha256(data).hexdigest()
    receipts = [Receipt.model_validate_json(deployment.read(key)) for key in deployment.keys("jobs/")]
    mine = [receipt for receipt in receipts if receipt.original is not None and receipt.original.sha256 == digest]
    assert [receipt.image_id for receipt in mine] == [view.job.image_id]
    assert receipt_key(view.job.job_id) in deployment.keys("jobs/")
    assert deployment.read(original_key("default", digest)) == data
    assert {key.rsplit("/", 1)[-1] for key in deployment.keys(f"claims/default/{digest}/")} == {view.job.image_id}
    return view.job.image_id


def image(size: int) -> bytes:
    """Return `size` bytes with a JPEG header, different on each call."""
    return JPEG + os.urandom(size - len(JPEG))


@pytest.mark.parametrize("checksum", [False, True])
def test_tuspy_uploads_in_chunks_and_resumes(
    deployment: Deployment, gateway: str, images_dir: Path, tmp_path: Path, checksum: bool
) -> None:
    """tuspy uploads part of an image and another tuspy resumes by URL, with and without checksums."""
    data = (images_dir / "formats/cat.jpg").read_bytes() + b"checked" * checksum
    path = tmp_path / "cat.jpg"
    path.write_bytes(data)
    client = TusClient(gateway + UPLOADS)
    metadata = {"filename": "cat.jpg", "bucket": "pets"}
    first = client.uploader(str(path), chunk_size=len(data) // 5, metadata=metadata, upload_checksum=checksum)
    first.upload(stop_at=len(data) // 2)
    assert deployment.keys("pieces/")
    second = client.uploader(str(path), url=first.url, chunk_size=len(data) // 3, upload_checksum=checksum)
    assert second.offset == first.offset == offset_of(first.url) > 0
    second.upload()
    assert second.request.response_headers["darkroom-job"].startswith(image_of(deployment, first.url, data))
    assert not deployment.keys("pieces/")


def test_an_upload_survives_a_connection_reset(deployment: Deployment, gateway: str, tmp_path: Path) -> None:
    """The received part of a chunk is kept; the resumed upload becomes one image with the right bytes."""
    data, path = image(5 * PIECE), tmp_path / "image.jpg"
    path.write_bytes(data)
    url = begin(gateway, len(data))
    arrived = 2 * PIECE + 12_345
    connection = half_sent(url, 0, data[:arrived], len(data))
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
    until(lambda: len(deployment.keys("pieces/")) >= 2, "two whole pieces")
    connection.close()  # with RST
    assert 2 * PIECE <= offset_of(url) <= arrived
    TusClient(gateway + UPLOADS).uploader(str(path), url=url, chunk_size=PIECE, **RETRYING).upload()
    image_of(deployment, url, data)


def test_an_upload_survives_a_gateway_killed_while_receiving(
    deployment: Deployment, gateway: str, tmp_path: Path
) -> None:
    """After SIGKILL during a chunk all complete pieces are stored; the resumed upload becomes one image."""
    data, path = image(5 * PIECE), tmp_path / "image.jpg"
    path.write_bytes(data)
    url = begin(gateway, len(data))
    with half_sent(url, 0, data[: 3 * PIECE + 12_345], len(data)):
        until(lambda: len(deployment.keys("pieces/")) >= 3, "three whole pieces")
        kill(deployment)
    start_again(deployment, gateway)
    assert offset_of(url) == sum(len(deployment.read(key)) for key in deployment.keys("pieces/")) >= 3 * PIECE
    TusClient(gateway + UPLOADS).uploader(str(path), url=url, chunk_size=PIECE, **RETRYING).upload()
    image_of(deployment, url, data)
    assert not deployment.keys("pieces/")


@pytest.mark.parametrize("moment", [0.0, 0.05])
def test_an_upload_survives_a_gateway_killed_while_completing(
    deployment: Deployment, gateway: str, tmp_path: Path, moment: float
) -> None:
    """After SIGKILL at any moment after the last byte, the resumed upload becomes exactly one image."""
    data, path = image(2 * PIECE), tmp_path / "image.jpg"
    path.write_bytes(data)
    url = begin(gateway, len(data))
    assert httpx.patch(url, headers={**PART, "Upload-Offset": "0"}, content=data[:PIECE], timeout=60).is_success
    with half_sent(url, PIECE, data[PIECE:], PIECE):
        time.sleep(moment + random.uniform(0, 0.02))  # any moment must work, so there is no condition to wait for
        kill(deployment)
    start_again(deployment, gateway)
    client = TusClient(gateway + UPLOADS)
    until(lambda: httpx.head(url, headers=TUS, timeout=60).is_success, "the lease of the killed gateway expiring")
    client.uploader(str(path), url=url, chunk_size=PIECE, **RETRYING).upload()
    image_of(deployment, url, data)


def test_a_large_upload_in_parts_takes_at_most_64_mib_of_memory(deployment: Deployment, gateway: str) -> None:
    """Receiving 256 MiB in parts and completing the upload raises the gateway's resident memory by at most 64 MiB."""
    chunk = bytes(MEBIBYTE)

    def body(size: int, first: bool) -> Iterator[bytes]:
        if first:
            yield JPEG
        left = size - len(JPEG) * first
        while left:
            yield chunk[:left]
            left -= min(left, len(chunk))

    def send(size: int, parts: int) -> None:
        url, each = begin(gateway, size), size // parts
        for at in range(0, size, each):
            headers = {**PART, "Upload-Offset": str(at), "Content-Length": str(each)}
            answer = httpx.patch(url, headers=headers, content=body(each, at == 0), timeout=240)
            assert answer.status_code == 204, answer.text
        assert answer.headers["darkroom-job"]

    kill(deployment)
    start_again(deployment, gateway, DARKROOM_GATEWAY__PIECE_BYTES=str(GatewaySettings().piece_bytes))
    send(3 * MEBIBYTE, 1)  # warm up: the first upload loads modules
    with Watch(deployment.children["gateway#0"].pid) as watch:
        send(LARGE, 4)
    assert watch.samples > 20
    for key in deployment.keys("originals/"):
        deployment.delete(key)  # pytest keeps folders
    grown = watch.peak - watch.before
    assert grown <= ALLOWED, f"{grown / MEBIBYTE:.0f} MiB"
