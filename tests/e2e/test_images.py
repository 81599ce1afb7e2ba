"""The state and the renditions of every test image."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.values import ErrorCode, ImageState, StageState
from tests.e2e.conftest import Sent, must_be_rejected
from tests.e2e.system import RunningSystem

REFUSALS = {
    ErrorCode.UNSUPPORTED_FORMAT,
    ErrorCode.DIMENSIONS_TOO_LARGE,
    ErrorCode.TOO_MANY_PIXELS,
    ErrorCode.TRUNCATED_IMAGE,
    ErrorCode.CORRUPT_IMAGE,
    ErrorCode.DECODE_TIMEOUT,
    ErrorCode.DECODE_MEMORY,
}
pytestmark = pytest.mark.timeout(900)  # the first test waits for the system and for all images


def test_ordinary_images_are_completed(sent: Sent) -> None:
    """Every photo, format, orientation, page and golden image completes with all four sizes."""
    ordinary = {name: result for name, result in sent.results.items() if not must_be_rejected(name)}
    assert len(ordinary) >= 40
    assert not [name for name in sent.rejected_on_upload if not must_be_rejected(name)]
    states = {name: (result.status, result.error) for name, result in ordinary.items()}
    assert {state for state, _ in states.values()} == {ImageState.COMPLETED}, states
    assert {tuple(sorted(result.urls)) for result in ordinary.values()} == {
        ("large", "medium", "original", "thumbnail")
    }


def test_hostile_images_are_rejected(sent: Sent) -> None:
    """Every hostile image is rejected with a stable code: on upload by its first bytes, or by the sanitizer."""
    hostile = {name: result for name, result in sent.results.items() if must_be_rejected(name)}
    assert {result.status for result in hostile.values()} == {ImageState.REJECTED}
    assert {str(result.error and result.error.code) for result in hostile.values()} <= REFUSALS
    assert all(result.error and result.error.message and not result.urls for result in hostile.values())
    assert {(refused.status, refused.code) for refused in sent.rejected_on_upload.values()} == {
        (415, "unsupported-format")
    }
    assert len(hostile) + len(sent.rejected_on_upload) == len(sent.as_events)


def test_hostile_images_of_another_service_are_rejected(sent: Sent) -> None:
    """Hostile images that bypass the gateway are rejected by the sanitizer with a stable code."""
    states = {name: (result.status, str(result.error and result.error.code)) for name, result in sent.as_events.items()}
    assert {state for state, _ in states.values()} == {ImageState.REJECTED}, states
    assert {code for _, code in states.values()} <= REFUSALS, states
    assert states["formats/check.svg"][1] == states["formats/relax.jp2"][1] == ErrorCode.UNSUPPORTED_FORMAT


def test_no_image_crashes_the_sanitizer_or_exhausts_its_memory(sent: Sent) -> None:
    """Over all images the sanitizer remains one process with less than 1 GiB of resident memory."""
    assert sent.memory is not None
    assert sent.memory.samples > 20
    assert len(sent.memory.pids) == 1
    assert 0 < sent.memory.peak < 2**30, f"{sent.memory.peak / 2**20:.0f} MiB"


def test_orientations_give_the_same_picture(sent: Sent, system: RunningSystem) -> None:
    """The eight EXIF orientations of one photo become the same upright image."""
    names = [f"exif/Landscape_{number}.jpg" for number in range(1, 9)]
    pictures = [_pixels(system, sent.results[name].image_id) for name in names]
    assert {picture.shape for picture in pictures} == {(400, 600, 3)}
    # Only the digit drawn on each differs: by one grey level in the mean at full size.
    differences = [float(np.abs(picture - pictures[0]).mean()) for picture in pictures]
    assert max(differences) < 3, differences


def test_the_source_of_the_orientations_differs(images_dir: Path) -> None:
    """The eight source files differ, so the test above can fail."""
    shown = [np.asarray(Image.open(images_dir / f"exif/Landscape_{n}.jpg").convert("L"), float) for n in (1, 3)]
    assert float(np.abs(shown[0] - shown[1]).mean()) > 20


def test_stored_images_have_no_metadata(sent: Sent, system: RunningSystem, images_dir: Path) -> None:
    """No master or rendition has EXIF, GPS, XMP, IPTC, an ICC profile or a comment."""
    assert Image.open(images_dir / "exif/DSCN0010.jpg").getexif().get_ifd(0x8825), "the photo has no GPS position"
    store = system.objects()
    keys = [key for key in system.stored("images/") if "/revisions/" not in key]  # revisions are JSON
    assert len(keys) >= 5 * len([result for result in sent.results.values() if result.urls])
    for key in keys:
        answer = store.get_object("darkroom", key)
        data = answer.read()
        answer.close()
        answer.release_conn()
        found = _metadata(data)
        assert not found, f"{key}: {found}"


def test_known_labels_and_words_are_found(sent: Sent) -> None:
    """The cat, the dogs and the bird are detected, and the printed page is read."""
    labels = {name: {found.label for found in result.objects or ()} for name, result in sent.results.items()}
    assert "cat" in labels["photos/cat_720p.jpg"]
    assert "dog" in labels["photos/pets.jpg"]
    assert "bird" in labels["photos/owl.jpg"]
    page = sent.results["ocr/phototest.tif"].text
    assert page is not None
    assert "quick brown dog" in " ".join(page.content.split())
    assert {span.engine for span in page.spans} == {"ppocr"}


def test_a_missing_model_is_reported(sent: Sent, system: RunningSystem) -> None:
    """Without CLIP weights images complete; result, status and health give the reason why the embedder skipped."""
    result = sent.results["photos/pets.jpg"]
    for seen in (result.stages["embedder"], system.client.status(result.job_id).stages["embedder"]):
        assert (seen.state, seen.reason) == (StageState.SKIPPED, ErrorCode.MODEL_UNAVAILABLE)
        assert "ViT-B-32" in str(seen.message) or "clip" in str(seen.message).lower()
    health = system.client.health()
    assert (health.ready, health.status) == (True, "degraded")
    assert not health.parts["search-by-meaning"].ok
    assert health.parts["search-by-meaning"].detail


def _pixels(system: RunningSystem, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(system.client.download(image_id, size="medium"))).convert("RGB"), float)


def _metadata(data: bytes) -> list[str]:
    """Return the names of the metadata in a file."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        known = {"exif", "xmp", "icc_profile", "comment", "photoshop", "XML:com.adobe.xmp", "iptc"}
        found = sorted(known & set(image.info))
        found += [f"EXIF {tag}" for tag in image.getexif()]
        match image.format:
            case "WEBP":
                found += sorted(set(_riff_chunks(data)) - {"VP8 ", "VP8L", "VP8X", "ALPH"})
            case "PNG":
                found += sorted(set(_png_chunks(data)) - {"IHDR", "IDAT", "IEND", "PLTE", "tRNS", "sRGB"})
            case "JPEG":
                found += [name for name, _ in getattr(image, "applist", []) if name not in {"APP0", "APP14"}]
                found += [] if data.endswith(b"\xff\xd9") else ["trailing bytes"]
            case other:
                found += [f"unexpected format {other}"]
    return found + [word.decode() for word in (b"Exif\0\0", b"http://ns.adobe.com/xap", b"ICC_PROFILE") if word in data]


def _riff_chunks(data: bytes) -> list[str]:
    names, at = [], 12
    while at + 8 <= len(data):
        name, size = struct.unpack_from("<4sI", data, at)
        names.append(name.decode("latin-1"))
        at += 8 + size + size % 2
    return names


def _png_chunks(data: bytes) -> list[str]:
    names, at = [], 8
    while at + 8 <= len(data):
        size, name = struct.unpack_from(">I4s", data, at)
        names.append(name.decode("latin-1"))
        at += 12 + size
    return names
