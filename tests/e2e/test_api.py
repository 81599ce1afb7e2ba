"""The way of one image over HTTP, from the 202 to its deletion."""

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
from tests.e2e.whole import PATIENCE_S, Whole, until

pytestmark = pytest.mark.timeout(900)  # the first test waits for the system


def _noise() -> bytes:
    """Return an image nobody has seen."""
    picture = Image.effect_noise((320, 240), random.uniform(40, 120)).convert("RGB")
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def _submitted(whole: Whole, source: Path | bytes | str, **metadata: JsonValue) -> JobResult:
    job = whole.client.submit(source, metadata=metadata)
    return whole.client.wait(job.job_id, timeout_s=PATIENCE_S)


@pytest.fixture(scope="module")
def bus(whole: Whole) -> JobResult:
    """Return what the system found on the photo of a bus."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return _submitted(whole, Path(spec.origin).parent / "assets" / "bus.jpg", album="street", nested={"n": [1, 2]})


@pytest.fixture(scope="module")
def sign(whole: Whole) -> JobResult:
    """Return what the system read on a drawn sign."""
    return _submitted(whole, draw_sign())


def test_persons_and_bus_are_found(bus: JobResult) -> None:
    """The detector finds the bus and the persons before it, each with a box inside the picture."""
    found = [seen.label for seen in bus.objects or ()]
    assert "bus" in found
    assert found.count("person") >= 2
    for seen in bus.objects or ():
        assert 0 <= seen.box.x <= seen.box.x + seen.box.width <= 1.001
        assert 0 <= seen.box.y <= seen.box.y + seen.box.height <= 1.001
        assert 0.25 <= seen.confidence <= 1


def test_the_result_is_what_is_promised(whole: Whole, bus: JobResult) -> None:
    """The body of a finished job has every promised field, with true values."""
    body = httpx.get(f"{whole.url}/api/v1/images/jobs/{bus.job_id}/result").json()
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
    assert (sanitizer["state"], sanitizer["attempts"], sanitizer["version"]) == ("done", 1, "1")
    assert sanitizer["duration_ms"] >= 0
    assert body["stages"]["embedder"]["reason"] == "model-unavailable"
    assert body["created_at"] <= body["completed_at"]


def test_drawn_text_is_read(sign: JobResult) -> None:
    """The words drawn on a sign are read, with spans that lie on the picture."""
    assert sign.text is not None
    assert DRAWN_TEXT.lower() in " ".join(sign.text.content.lower().split())
    for span in sign.text.spans:
        assert len(span.polygon) == 4
        assert all(-1 <= x <= 1201 and -1 <= y <= 501 for x, y in span.polygon)


def test_search_finds_by_text_and_by_label(whole: Whole, bus: JobResult, sign: JobResult) -> None:
    """A search for drawn words finds the sign, a search for an object finds its photo, each as the first answer."""
    by_text = whole.client.search("reads this sign")
    assert by_text.items[0].image_id == sign.image_id
    assert "text" in by_text.items[0].matched
    by_label = {item.image_id: item.matched for item in whole.client.search("bus").items}
    assert "label" in by_label[bus.image_id]
    assert sign.image_id not in by_label
    assert (by_text.by_meaning, bool(by_text.reason)) == (False, True)


def test_a_turned_photo_stands_upright_without_its_position(whole: Whole) -> None:
    """A photo of a turned camera is shown upright; its GPS position is nowhere."""
    result = _submitted(whole, draw_turned())
    size = result.metadata.original_dimensions
    assert size is not None
    assert (size.width, size.height) == (600, 900)
    assert not Image.open(io.BytesIO(whole.client.download(result.image_id, size="original"))).getexif()


def test_status_is_right_at_once(whole: Whole) -> None:
    """Right after the 202 the job is known and in process, and its result is refused until it has ended."""
    job = whole.client.submit(_noise())
    status = whole.client.status(job.job_id)
    assert status.image_id == job.image_id
    assert status.status in {ImageState.PROCESSING, ImageState.COMPLETED}
    assert set(status.stages) == {"sanitizer", "resizer", "ocr", "detector", "embedder"}
    if status.status is ImageState.PROCESSING:
        with pytest.raises(Refused) as refused:
            whole.client.result(job.job_id)
        assert (refused.value.status, refused.value.code) == (409, "not-finished")
    assert whole.client.wait(job.job_id, timeout_s=PATIENCE_S).status is ImageState.COMPLETED


def test_renditions_are_served(whole: Whole, bus: JobResult, sign: JobResult) -> None:
    """Sizes, one size, several images and the bytes themselves are answered; what a browser has is not sent again."""
    api = f"{whole.url}/api/v1/images"
    sizes = whole.client.sizes(bus.image_id).sizes
    assert set(sizes) == {"thumbnail", "medium", "large", "original"}
    one = httpx.get(f"{api}/{bus.image_id}", params={"size": "thumbnail"}).json()
    assert (one["sha256"], one["height"]) == (sizes["thumbnail"].sha256, 150)
    batch = whole.client.batch([sign.image_id, bus.image_id, "00000000-0000-7000-8000-000000000000"], size="large")
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


def test_an_image_is_listed_by_what_its_owner_says_of_it(whole: Whole, bus: JobResult) -> None:
    """Tags said anew are in the log, the indexer records them, and the listing finds the image by them."""
    api = f"{whole.url}/api/v1/images"
    said = httpx.patch(f"{api}/{bus.image_id}", json={"tags": ["street life"], "context": {"album": None}}, timeout=30)
    assert said.status_code in (200, 202), said.text

    def listed() -> list[str]:
        page = httpx.get(api, params={"tag": "street life", "label": "bus", "state": "completed"}).json()
        return [item["image_id"] for item in page["items"]]

    until(lambda: listed() == [bus.image_id], "the image is not listed")
    known = httpx.get(f"{api}/{bus.image_id}/metadata").json()
    assert (known["tags"], known["context"]) == (["street life"], {"nested": {"n": [1, 2]}})


def test_equal_bytes_are_worked_on_once(whole: Whole, sign: JobResult) -> None:
    """The same bytes sent again become an image of their own from results that were there, byte for byte."""
    again = _submitted(whole, draw_sign())
    assert again.image_id != sign.image_id
    assert again.status is ImageState.COMPLETED
    worked = {name: stage for name, stage in again.stages.items() if stage.state is StageState.DONE}
    assert set(worked) == {"sanitizer", "resizer", "ocr", "detector"}
    assert all(stage.reused for stage in worked.values())
    assert not any(stage.reused for stage in sign.stages.values())
    assert again.text == sign.text
    for size in sign.urls:
        assert whole.client.download(again.image_id, size=size) == whole.client.download(sign.image_id, size=size)


def test_a_deleted_image_is_gone(whole: Whole) -> None:
    """A deleted image is hidden at once, and in the end the object store holds nothing of it."""
    noise = _noise()
    result = _submitted(whole, noise)
    before = whole.stored()
    assert [key for key in before if result.image_id in key]
    digest = next(key.rsplit("/", 1)[-1] for key in before if key.startswith("originals/") and _is(whole, key, noise))
    gone = whole.client.delete(result.image_id)
    for path in ("", "/all", "/direct"):
        assert httpx.get(f"{whole.url}/api/v1/images/{result.image_id}{path}").status_code in {404, 410}
    with pytest.raises(Refused) as refused:
        whole.client.result(result.job_id)
    assert refused.value.status in {404, 410}
    until(lambda: whole.client.status(gone.job_id).status is ImageState.DELETED, "the deletion")
    kept = ("erasures/", "erasing/")  # the receipt of the deletion, and what is looked after until it is finished

    def left() -> list[str]:
        return [key for key in whole.stored() if not key.startswith(kept) and (result.image_id in key or digest in key)]

    until(lambda: not left(), "an empty store")
    until(lambda: whole.client.erasure(result.image_id).state is not ErasureState.REQUESTED, "the receipt saying so")
    erasure = whole.client.erasure(result.image_id)
    assert gone.erasure_url.endswith(f"/images/{result.image_id}/erasure")
    assert (erasure.remaining, erasure.removed.originals, erasure.removed.objects) == (0, 1, 1 + len(result.urls))
    assert erasure.removed.receipts == 2


def _is(whole: Whole, key: str, data: bytes) -> bool:
    answer = whole.objects().get_object("darkroom", key)
    try:
        return bool(answer.read() == data)
    finally:
        answer.close()
        answer.release_conn()


@contextmanager
def _web(folder: Path) -> Iterator[str]:
    """Serve a folder; yield its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(SimpleHTTPRequestHandler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_an_image_is_fetched_by_url(whole: Whole, images_dir: Path) -> None:
    """An image named by URL is brought, and ends completed with the URL and the client's metadata on it."""
    with _web(images_dir) as web:
        result = _submitted(whole, f"{web}/photos/owl.jpg", brought="by URL")
    assert (result.status, result.error) == (ImageState.COMPLETED, None)
    assert result.metadata.source_url == f"{web}/photos/owl.jpg"
    assert result.metadata.context == {"brought": "by URL"}
    assert result.stages["fetcher"].state is StageState.DONE


def test_forbidden_and_missing_sources_are_rejected(whole: Whole, tmp_path: Path) -> None:
    """A URL of the cloud's metadata service, one that leads nowhere and one that is a page end rejected, saying so."""
    (tmp_path / "page.html").write_text("<html><body>no image</body></html>")
    with _web(tmp_path) as web:
        urls = {
            "http://169.254.169.254/latest/meta-data/": ErrorCode.URL_NOT_ALLOWED,
            f"{web}/none.jpg": ErrorCode.SOURCE_NOT_FOUND,
            f"{web}/page.html": ErrorCode.NOT_AN_IMAGE,
        }
        ended = {url: _submitted(whole, url) for url in urls}
    assert {result.status for result in ended.values()} == {ImageState.REJECTED}
    assert {url: result.error and result.error.code for url, result in ended.items()} == urls
