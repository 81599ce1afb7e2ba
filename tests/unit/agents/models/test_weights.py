"""How a model's weights file is chosen, and how conversions are cached."""

from __future__ import annotations

import hashlib
import io
import shutil
import threading
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import JsonValue

from agents.models import weights
from agents.models.converted import about, backend_of, converted, threads_of
from agents.models.weights import (
    OWN_DETECTORS,
    Mismatch,
    Model,
    ModelState,
    Unavailable,
    Weights,
    fetch,
    find,
    manifest,
    model_named,
    sha256_of,
    status,
)
from streams.settings import ModelsSettings

BODY = b"weights" * 1000


@pytest.fixture
def settings(tmp_path: Path) -> ModelsSettings:
    folder = tmp_path / "models"
    folder.mkdir()
    return ModelsSettings(dir=folder, cache=tmp_path / "cache", download=False)


@pytest.fixture(scope="module")
def source() -> Iterator[str]:
    """Serve BODY plainly and zipped, as an official source would."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("small.pt", BODY)
    served = {"/small.pt": BODY, "/small.zip": packed.getvalue()}

    class Source(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = served.get(self.path)
            self.send_response(200 if body else 404)
            self.send_header("content-length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name http.server gives it
            """Log nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Source)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def known(monkeypatch: pytest.MonkeyPatch, url: str, *, body: bytes = BODY) -> None:
    digest = hashlib.sha256(body).hexdigest()
    only = Model("small", "detector", "small.pt", digest, "MIT", url)
    monkeypatch.setattr(weights, "manifest", lambda: (only,))


def test_the_manifest_is_complete_for_every_model() -> None:
    """Each model has a whole sha256, a licence, and a source served over TLS."""
    assert {model.name for model in manifest()} == {
        "yolov8n", "clip-vit-b-32", "easyocr-craft", "easyocr-english",
        "ppocr-v6-small-detector", "ppocr-v6-small-recogniser", "ppocr-v2-line-direction",
    }  # fmt: skip
    for model in manifest():
        assert len(bytes.fromhex(model.sha256)) == 32
        assert model.licence
        assert model.source.startswith("https://")


def test_weights_come_from_an_installed_package(settings: ModelsSettings) -> None:
    """EasyOCR's weights are found in the package that contains them, with the manifest's hash."""
    found = find("easyocr-english", settings)
    assert (found.sha256, found.own) == (model_named("easyocr-english").sha256, False)


def test_the_operators_folder_is_searched_first(settings: ModelsSettings) -> None:
    """A file in models.dir precedes the same file in the package."""
    packaged = find("easyocr-english", settings)
    assert settings.dir is not None
    mine = settings.dir / packaged.path.name
    shutil.copyfile(packaged.path, mine)
    assert find("easyocr-english", settings).path == mine


def test_a_file_with_the_wrong_hash_is_not_used_unless_it_is_named(settings: ModelsSettings) -> None:
    """A false yolov8n.pt is refused by its hash; named in a setting it is accepted and its hash recorded."""
    assert settings.dir is not None
    (settings.dir / "yolov8n.pt").write_bytes(b"something else")
    with pytest.raises(Mismatch, match="sha256"):
        find("yolov8n", settings)
    named = find("yolov8n", settings, own="yolov8n.pt")
    assert (named.own, named.sha256) == (True, hashlib.sha256(b"something else").hexdigest())


def test_an_unnamed_detector_of_the_operator_is_taken_in_a_documented_order(settings: ModelsSettings) -> None:
    """Without the manifest's file, the first *yolo*.pt by name is used, then a *yolo*.onnx."""
    assert settings.dir is not None
    for name in ("a_yolo.onnx", "b_yolo11.pt", "a_yolo8.pt", "other.pt"):
        (settings.dir / name).write_bytes(name.encode())
    assert find("yolov8n", settings, own_patterns=OWN_DETECTORS).path.name == "a_yolo8.pt"


@pytest.mark.parametrize("name", ["../outside.pt", "missing.pt"])
def test_a_named_file_must_be_in_the_operators_folder(settings: ModelsSettings, tmp_path: Path, name: str) -> None:
    """A name outside models.dir, or of a missing file, is unavailable."""
    (tmp_path / "outside.pt").write_bytes(b"x")
    with pytest.raises(Unavailable, match=r"models\.dir"):
        find("yolov8n", settings, own=name)


def test_missing_weights_are_unavailable_and_the_reason_shows_no_path(settings: ModelsSettings, tmp_path: Path) -> None:
    """The reason names the searched places, which clients may read, but no folder of this machine."""
    with pytest.raises(Unavailable) as caught:
        find("clip-vit-b-32", settings)
    assert "models.dir" in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("path", ["/small.pt", "/small.zip"])
def test_missing_weights_are_downloaded_with_progress_and_verified(
    settings: ModelsSettings, source: str, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    """A plain or zipped file is downloaded with progress, verified, cached and found the next time."""
    known(monkeypatch, source + path)
    seen: list[tuple[str, int, int | None]] = []
    online = settings.model_copy(update={"download": True})
    found = find("small", online, progress=lambda *step: seen.append(step))
    assert found.path.read_bytes() == BODY
    assert seen
    assert seen[-1][0] == "small"
    assert seen[-1][1] == seen[-1][2]
    assert find("small", settings) == found


def test_a_download_with_another_hash_is_discarded(
    settings: ModelsSettings, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes with another hash leave no file and make the model unavailable."""
    known(monkeypatch, source + "/small.pt", body=b"other")
    with pytest.raises(Unavailable, match="sha256"):
        find("small", settings.model_copy(update={"download": True}))
    assert list(settings.cache.iterdir()) == []


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/small.pt", "{source}/absent.pt"])
def test_a_source_that_does_not_answer_makes_the_model_unavailable(
    settings: ModelsSettings, source: str, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    """A refused connection and a 404 both raise Unavailable with the reason."""
    known(monkeypatch, url.format(source=source))
    with pytest.raises(Unavailable, match="download from"):
        find("small", settings.model_copy(update={"download": True}))
    (line,) = fetch(settings, ["small"])
    assert line.state is ModelState.UNAVAILABLE
    assert "failed" in line.reason


def test_status_reports_every_model(settings: ModelsSettings) -> None:
    """Available with its place, unavailable with the reason, mismatch with the hash that was found."""
    assert settings.dir is not None
    (settings.dir / "ViT-B-32.pt").write_bytes(b"false")
    lines = {line.name: line for line in status(settings)}
    assert lines["easyocr-craft"].state is ModelState.AVAILABLE
    assert lines["easyocr-craft"].where is not None
    assert lines["yolov8n"].state is ModelState.UNAVAILABLE
    assert lines["yolov8n"].reason
    assert lines["clip-vit-b-32"].state is ModelState.MISMATCH
    assert lines["clip-vit-b-32"].sha256 == hashlib.sha256(b"false").hexdigest()


def test_fetching_an_unknown_model_raises(settings: ModelsSettings) -> None:
    """A misspelt name raises."""
    with pytest.raises(KeyError, match="yolo99"):
        fetch(settings, ["yolo99"])


def test_a_conversion_is_made_once_under_concurrency(settings: ModelsSettings, tmp_path: Path) -> None:
    """Concurrent conversions of the same weights all return one complete folder; a later call converts nothing."""
    path = tmp_path / "w.pt"
    path.write_bytes(b"w")
    mine = Weights("w", path, sha256_of(path))
    together = threading.Barrier(3)

    def convert(folder: Path) -> dict[str, JsonValue]:
        (folder / "model.xml").write_text("graph")
        together.wait(10)
        return {"stride": 32}

    with ThreadPoolExecutor(3) as pool:
        folders = set(pool.map(lambda _: converted(settings, mine, "part", convert), range(3)))
    (folder,) = folders
    assert about(folder) == {"stride": 32}
    assert [entry.name for entry in folder.parent.iterdir()] == [folder.name]
    assert converted(settings, mine, "part", lambda _: pytest.fail("converted twice")) == folder


def test_a_conversion_that_fails_leaves_nothing(settings: ModelsSettings, tmp_path: Path) -> None:
    """A conversion that raises leaves no partial folder for the next process."""
    path = tmp_path / "w.pt"
    path.write_bytes(b"w")

    def convert(folder: Path) -> dict[str, JsonValue]:
        (folder / "model.xml").write_text("half")
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        converted(settings, Weights("w", path, sha256_of(path)), "part", convert)
    assert list((settings.cache / "openvino").iterdir()) == []


def test_the_backend_follows_the_settings(settings: ModelsSettings) -> None:
    """A named backend is used; a misspelt one is refused with the allowed names."""
    assert backend_of(settings.model_copy(update={"backend": "torch"})) == "torch"
    with pytest.raises(ValueError, match="openvino, torch"):
        backend_of(settings.model_copy(update={"backend": "tensor"}))


def test_threads_are_the_settings_or_all_cores(settings: ModelsSettings) -> None:
    """A limit is used as it is; without one, every core available to this process."""
    assert threads_of(settings.model_copy(update={"threads": 3})) == 3
    assert threads_of(settings) >= 1
