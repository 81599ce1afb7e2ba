"""Every test image through the running system: how it ends, and what is in its renditions."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from schemas.values import ErrorCode, ImageState, StageState
from tests.e2e.conftest import Sent, refused_by_policy
from tests.e2e.whole import Whole

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
    """Every photo, format, orientation, page and golden image ends completed with all four sizes."""
    ordinary = {name: result for name, result in sent.results.items() if not refused_by_policy(name)}
    assert len(ordinary) >= 40
    assert not [name for name in sent.at_the_door if not refused_by_policy(name)]
    states = {name: (result.status, result.error) for name, result in ordinary.items()}
    assert {state for state, _ in states.values()} == {ImageState.COMPLETED}, states
    assert {tuple(sorted(result.urls)) for result in ordinary.values()} == {
        ("large", "medium", "original", "thumbnail")
    }


def test_hostile_images_are_rejected(sent: Sent) -> None:
    """Every hostile image is refused with a stable code: at the door by its first bytes, or by the sanitizer."""
    hostile = {name: result for name, result in sent.results.items() if refused_by_policy(name)}
    assert {result.status for result in hostile.values()} == {ImageState.REJECTED}
    assert {str(result.error and result.error.code) for result in hostile.values()} <= REFUSALS
    assert all(result.error and result.error.message and not result.urls for result in hostile.values())
    assert {(refused.status, refused.code) for refused in sent.at_the_door.values()} == {(415, "unsupported-format")}
    assert len(hostile) + len(sent.at_the_door) == len(sent.as_events)


def test_hostile_images_of_another_service_are_rejected(sent: Sent) -> None:
    """What another service sends past the gateway is refused by the sanitizer with a stable code."""
    states = {name: (result.status, str(result.error and result.error.code)) for name, result in sent.as_events.items()}
    assert {state for state, _ in states.values()} == {ImageState.REJECTED}, states
    assert {code for _, code in states.values()} <= REFUSALS, states
    assert states["formats/check.svg"][1] == states["formats/relax.jp2"][1] == ErrorCode.UNSUPPORTED_FORMAT


def test_no_image_crashes_or_swells_the_sanitizer(sent: Sent) -> None:
    """Through all of it the sanitizer is one process that never takes a gibibyte."""
    assert sent.memory is not None
    assert sent.memory.samples > 20
    assert len(sent.memory.pids) == 1
    assert 0 < sent.memory.peak < 2**30, f"{sent.memory.peak / 2**20:.0f} MiB"


def test_orientations_come_out_alike(sent: Sent, whole: Whole) -> None:
    """The eight EXIF orientations of one photo become the same upright picture."""
    names = [f"exif/Landscape_{number}.jpg" for number in range(1, 9)]
    pictures = [_pixels(whole, sent.results[name].image_id) for name in names]
    assert {picture.shape for picture in pictures} == {(400, 600, 3)}
    # The digit drawn on each differs, nothing else: at full size by one grey level in the mean.
    differences = [float(np.abs(picture - pictures[0]).mean()) for picture in pictures]
    assert max(differences) < 3, differences


def test_the_source_of_the_orientations_differs(images_dir: Path) -> None:
    """The eight files do differ before: the one above could fail."""
    shown = [np.asarray(Image.open(images_dir / f"exif/Landscape_{n}.jpg").convert("L"), float) for n in (1, 3)]
    assert float(np.abs(shown[0] - shown[1]).mean()) > 20


def test_nothing_stored_tells_more_than_pixels(sent: Sent, whole: Whole, images_dir: Path) -> None:
    """No master and no rendition of any image carries EXIF, GPS, XMP, IPTC, an ICC profile or a comment."""
    assert Image.open(images_dir / "exif/DSCN0010.jpg").getexif().get_ifd(0x8825), "the photo has no GPS position"
    store = whole.objects()
    keys = [key for key in whole.stored("images/") if "/revisions/" not in key]  # what owners said anew is no picture
    assert len(keys) >= 5 * len([result for result in sent.results.values() if result.urls])
    for key in keys:
        answer = store.get_object("darkroom", key)
        data = answer.read()
        answer.close()
        answer.release_conn()
        told = _told(data)
        assert not told, f"{key}: {told}"


def test_labels_and_words_are_those_of_the_photos(sent: Sent) -> None:
    """The cat, the dogs and the bird are found, and the printed page is read."""
    labels = {name: {found.label for found in result.objects or ()} for name, result in sent.results.items()}
    assert "cat" in labels["photos/cat_720p.jpg"]
    assert "dog" in labels["photos/pets.jpg"]
    assert "bird" in labels["photos/owl.jpg"]
    page = sent.results["ocr/phototest.tif"].text
    assert page is not None
    assert "quick brown dog" in " ".join(page.content.split())
    assert all(span.engine in {"tesseract", "easyocr"} for span in page.spans)


def test_a_missing_model_is_said_on_every_image(sent: Sent, whole: Whole) -> None:
    """Without CLIP weights images complete, and image, status and health say that and why the embedder skipped."""
    result = sent.results["photos/pets.jpg"]
    for seen in (result.stages["embedder"], whole.client.status(result.job_id).stages["embedder"]):
        assert (seen.state, seen.reason) == (StageState.SKIPPED, ErrorCode.MODEL_UNAVAILABLE)
        assert "ViT-B-32" in str(seen.message) or "clip" in str(seen.message).lower()
    health = whole.client.health()
    assert (health.ready, health.status) == (True, "degraded")
    assert not health.parts["search-by-meaning"].ok
    assert health.parts["search-by-meaning"].detail


def _pixels(whole: Whole, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(whole.client.download(image_id, size="medium"))).convert("RGB"), float)


def _told(data: bytes) -> list[str]:
    """Return what a file says beyond its pixels."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        known = {"exif", "xmp", "icc_profile", "comment", "photoshop", "XML:com.adobe.xmp", "iptc"}
        told = sorted(known & set(image.info))
        told += [f"EXIF {tag}" for tag in image.getexif()]
        match image.format:
            case "WEBP":
                told += sorted(set(_riff_chunks(data)) - {"VP8 ", "VP8L", "VP8X", "ALPH"})
            case "PNG":
                told += sorted(set(_png_chunks(data)) - {"IHDR", "IDAT", "IEND", "PLTE", "tRNS", "sRGB"})
            case "JPEG":
                told += [name for name, _ in getattr(image, "applist", []) if name not in {"APP0", "APP14"}]
                told += [] if data.endswith(b"\xff\xd9") else ["trailing bytes"]
            case other:
                told += [f"{other} is no format of ours"]
    return told + [word.decode() for word in (b"Exif\0\0", b"http://ns.adobe.com/xap", b"ICC_PROFILE") if word in data]


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
