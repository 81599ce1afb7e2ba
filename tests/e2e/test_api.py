"""One image over HTTP, from the 202 to its deletion."""

from __future__ import annotations

import io
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
from PIL import Image
from pydantic import JsonValue

from darkroom.local.demo import DRAWN_TEXT, draw_sign, draw_turned
from gateway.client import Refused
from schemas.http.jobs import JobResult
from schemas.stored.erasures import ErasureState
from schemas.values import ErrorCode, ImageState, StageState
from tests.e2e.system import PATIENCE_S, RunningSystem, until

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system


def _noise() -> bytes:
    """Return a new random image."""
    picture = Image.effect_noise((320, 240), random.uniform(40, 120)).convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _submitted(system: RunningSystem, source: Path | bytes | str, **metadata: JsonValue) -> JobResult:
    job = system.client.submit(source, metadata=metadata)
    return system.client.wait(job.job_id, timeout_s=PATIENCE_S)


@pytest.fixture(scope="module")
def bus(system: RunningSystem) -> JobResult:
    """Return the result of a photo of a bus."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return _submitted(system, Path(spec.origin).parent / "assets" / "bus.jpg", album="street", nested={"n": [1, 2]})


@pytest.fixture(scope="module")
def sign(system: RunningSystem) -> JobResult:
    """Return the result of a drawn sign."""
    return _submitted(system, draw_sign())


def test_persons_and_bus_are_detected(bus: JobResult) -> None:
    """The detector finds the bus and the persons in front of it, each with a box inside the image."""
    found = [detected.label for detected in bus.objects or ()]
    assert "bus" in found
    assert found.count("person") >= 2
    for detected in bus.objects or ():
        assert 0 <= detected.box.x <= detected.box.x + detected.box.width <= 1.001
        assert 0 <= detected.box.y <= detected.box.y + detected.box.height <= 1.001
        assert 0.25 <= detected.confidence <= 1


def test_the_result_has_every_documented_field(system: RunningSystem, bus: JobResult) -> None:
    """The body of a finished job has every documented field, with correct values."""
    body = httpx.get(f"{system.url}/api/v1/images/jobs/{bus.job_id}/result").json()
    assert body["status"] == "completed"
    assert body["image_id"] in body["job_id"]
    assert set(body["urls"]) == {"thumbnail", "medium", "large", "original"}
    metadata = body["metadata"]
    assert metadata["dominant_color"].startswith("#")
    assert metadata["thumbhash"]
    assert metadata["original_dimensions"] == {"width": 810, "height": 1080}
    assert metadata["context"] == {"album": "street", "nested": {"n": [1, 2]}}
    for name, side in {"thumbnail": 150, "medium": 600, "large": 1080, "original": 1080}.items():
        variant = metadata["variants"][name]
        picture = httpx.get(body["urls"][name]).content
        assert Image.open(io.BytesIO(picture)).size == (variant["width"], variant["height"])
        assert (variant["height"], variant["format"], variant["size_bytes"]) == (side, "webp", len(picture))
        assert variant["aspect_ratio"] == pytest.approx(0.75, abs=0.01)
    assert {"label", "confidence", "box"} <= set(body["objects"][0])
    assert {"x", "y", "width", "height"} <= set(body["objects"][0]["box"])
    assert set(body["stages"]) == {"sanitizer", "resizer", "ocr", "detector", "embedder"}
    sanitizer = body["stages"]["sanitizer"]
    assert (sanitizer["state"], sanitizer["attempts"], sanitizer["version"]) == ("done", 1, "2")
    assert sanitizer["duration_ms"] >= 0
    assert body["stages"]["embedder"]["reason"] == "model-unavailable"
    assert body["created_at"] <= body["completed_at"]


def test_drawn_text_is_read(sign: JobResult) -> None:
    """OCR reads the words on a sign, with spans inside the image."""
    assert sign.text is not None
    assert DRAWN_TEXT.lower() in " ".join(sign.text.content.lower().split())
    for span in sign.text.spans:
        assert len(span.polygon) == 4
        assert all(-1 <= x <= 1201 and -1 <= y <= 501 for x, y in span.polygon)


def test_search_finds_by_text_and_by_label(system: RunningSystem, bus: JobResult, sign: JobResult) -> None:
    """A search for the words finds the sign, a search for a label finds the photo, each as the first result."""
    by_text = system.client.search("reads this sign")
    assert by_text.items[0].image_id == sign.image_id
    assert "text" in by_text.items[0].matched
    by_label = {item.image_id: item.matched for item in system.client.search("bus").items}
    assert "label" in by_label[bus.image_id]
    assert sign.image_id not in by_label
    assert (by_text.by_meaning, bool(by_text.reason)) == (False, True)


def test_a_rotated_photo_is_upright_without_its_position(system: RunningSystem) -> None:
    """A photo with an EXIF rotation is stored upright and without its GPS position."""
    result = _submitted(system, draw_turned())
    size = result.metadata.original_dimensions
    assert size is not None
    assert (size.width, size.height) == (600, 900)
    assert not Image.open(io.BytesIO(system.client.download(result.image_id, size="original"))).getexif()


def test_status_is_known_after_the_202(system: RunningSystem) -> None:
    """Directly after the 202 the job is known; its result is answered 409 until the job has ended."""
    job = system.client.submit(_noise())
    status = system.client.status(job.job_id)
    assert status.image_id == job.image_id
    assert status.status in {ImageState.PROCESSING, ImageState.COMPLETED}
    assert set(status.stages) == {"sanitizer", "resizer", "ocr", "detector", "embedder"}
    if status.status is ImageState.PROCESSING:
        with pytest.raises(Refused) as refused:
            system.client.result(job.job_id)
        assert (refused.value.status, refused.value.code) == (409, "not-finished")
    assert system.client.wait(job.job_id, timeout_s=PATIENCE_S).status is ImageState.COMPLETED


def test_renditions_are_served(system: RunningSystem, bus: JobResult, sign: JobResult) -> None:
    """All sizes, one size, several images and the bytes are served; a matching ETag is answered 304."""
    api = f"{system.url}/api/v1/images"
    sizes = system.client.sizes(bus.image_id).sizes
    assert set(sizes) == {"thumbnail", "medium", "large", "original"}
    one = httpx.get(f"{api}/{bus.image_id}", params={"size": "thumbnail"}).json()
    assert (one["sha256"], one["height"]) == (sizes["thumbnail"].sha256, 150)
    batch = system.client.batch([sign.image_id, bus.image_id, "00000000-0000-7000-8000-000000000000"], size="large")
    assert [view.image_id for view in batch.images] == [sign.image_id, bus.image_id]
    assert [error.code for error in batch.errors] == ["not-found"]
    direct = httpx.get(f"{api}/{bus.image_id}/direct", params={"size": "medium"})
    assert (direct.status_code, direct.headers["content-type"]) == (200, "image/webp")
    assert direct.headers["etag"] == f'"{sizes["medium"].sha256}"'
    again = httpx.get(
        f"{api}/{bus.image_id}/direct", params={"size": "medium"}, headers={"If-None-Match": direct.headers["etag"]}
    )
    assert (again.status_code, again.content) == (304, b"")
    assert httpx.get(f"{api}/{bus.image_id}", params={"size": "huge"}).status_code == 404


def test_an_image_is_listed_by_its_changed_tags(system: RunningSystem, bus: JobResult) -> None:
    """Changed tags go through the log to the indexer, and the listing finds the image by them."""
    api = f"{system.url}/api/v1/images"
    changed = httpx.patch(
        f"{api}/{bus.image_id}", json={"tags": ["street life"], "context": {"album": None}}, timeout=30
    )
    assert changed.status_code in (200, 202), changed.text

    def listed() -> list[str]:
        page = httpx.get(api, params={"tag": "street life", "label": "bus", "state": "completed"}).json()
        return [item["image_id"] for item in page["items"]]

    until(lambda: listed() == [bus.image_id], "the image being listed")
    known = httpx.get(f"{api}/{bus.image_id}/metadata").json()
    assert (known["tags"], known["context"]) == (["street life"], {"nested": {"n": [1, 2]}})


def test_equal_bytes_are_processed_once(system: RunningSystem, sign: JobResult) -> None:
    """The same bytes uploaded again become a new image from the stored results, byte for byte."""
    again = _submitted(system, draw_sign())
    assert again.image_id != sign.image_id
    assert again.status is ImageState.COMPLETED
    done = {name: stage for name, stage in again.stages.items() if stage.state is StageState.DONE}
    assert set(done) == {"sanitizer", "resizer", "ocr", "detector"}
    assert all(stage.reused for stage in done.values())
    assert not any(stage.reused for stage in sign.stages.values())
    assert again.text == sign.text
    for size in sign.urls:
        assert system.client.download(again.image_id, size=size) == system.client.download(sign.image_id, size=size)


def test_a_deleted_image_is_erased(system: RunningSystem) -> None:
    """A deleted image is hidden at once, and finally no object of it is stored."""
    noise = _noise()
    result = _submitted(system, noise)
    before = system.stored()
    assert [key for key in before if result.image_id in key]
    digest = next(key.rsplit("/", 1)[-1] for key in before if key.startswith("originals/") and _is(system, key, noise))
    gone = system.client.delete(result.image_id)
    for path in ("", "/all", "/direct"):
        assert httpx.get(f"{system.url}/api/v1/images/{result.image_id}{path}").status_code in {404, 410}
    with pytest.raises(Refused) as refused:
        system.client.result(result.job_id)
    assert refused.value.status in {404, 410}
    until(lambda: system.client.status(gone.job_id).status is ImageState.DELETED, "the deletion")
    kept = ("erasures/", "erasing/", "deletions/")  # the receipt of the deletion, and the state of its cleanup

    def left() -> list[str]:
        return [
            key for key in system.stored() if not key.startswith(kept) and (result.image_id in key or digest in key)
        ]

    until(lambda: not left(), "all objects being removed")
    until(
        lambda: system.client.erasure(result.image_id).state is not ErasureState.REQUESTED, "the receipt being updated"
    )
    erasure = system.client.erasure(result.image_id)
    assert gone.erasure_url.endswith(f"/images/{result.image_id}/erasure")
    assert (erasure.remaining, erasure.removed.originals, erasure.removed.objects) == (0, 1, 1 + len(result.urls))
    assert erasure.removed.receipts == 2


def _is(system: RunningSystem, key: str, data: bytes) -> bool:
    answer = system.objects().get_object("darkroom", key)
    try:
        return bool(answer.read() == data)
    finally:
        answer.close()
        answer.release_conn()


@contextmanager
def _web(folder: Path) -> Iterator[str]:
    """Serve a folder over HTTP; yield the base URL."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_image_is_fetched_by_url(system: RunningSystem, images_dir: Path) -> None:
    """An image submitted by URL is fetched and completes with the URL and the client's metadata."""
    with _web(images_dir) as web:
        result = _submitted(system, f"{web}/photos/owl.jpg", submitted="by URL")
    assert (result.status, result.error) == (ImageState.COMPLETED, None)
    assert result.metadata.source_url == f"{web}/photos/owl.jpg"
    assert result.metadata.context == {"submitted": "by URL"}
    assert result.stages["fetcher"].state is StageState.DONE


def test_forbidden_and_missing_sources_are_rejected(system: RunningSystem, tmp_path: Path) -> None:
    """A URL of the cloud metadata service, a missing file and an HTML page are rejected with their error codes."""
    (tmp_path / "page.html").write_text("<html><body>no image</body></html>")
    with _web(tmp_path) as web:
        urls = {
            "http://169.254.169.254/latest/meta-data/": ErrorCode.URL_NOT_ALLOWED,
            f"{web}/none.jpg": ErrorCode.SOURCE_NOT_FOUND,
            f"{web}/page.html": ErrorCode.NOT_AN_IMAGE,
        }
        ended = {url: _submitted(system, url) for url in urls}
    assert {result.status for result in ended.values()} == {ImageState.REJECTED}
    assert {url: result.error and result.error.code for url, result in ended.items()} == urls
