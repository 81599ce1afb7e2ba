"""Barcodes: every kind is read where it is, and nothing is read where there is none."""

from __future__ import annotations

import base64
from pathlib import Path

import numpy as np
import pytest
import zxingcpp
from PIL import Image

from agents.core.barcodes import barcodes_in
from agents.core.decode import Limits, Refusal, decode
from tests.support.barcodes import drawn

Kind = zxingcpp.BarcodeFormat
KINDS = [
    (Kind.QRCode, "QR Code", "https://example.org/ü?a=1"),
    (Kind.EAN13, "EAN-13", "5901234123457"),
    (Kind.Code128, "Code 128", "ABC-123"),
    (Kind.DataMatrix, "Data Matrix", "lot 42"),
    (Kind.PDF417, "PDF417", "boarding pass"),
    (Kind.Aztec, "Aztec", "ticket 7"),
]


def on_white(*placed: tuple[Image.Image, tuple[int, int]], size: tuple[int, int] = (1200, 900)) -> Image.Image:
    page = Image.new("RGB", size, "white")
    for code, at in placed:
        page.paste(code, at)
    return page


@pytest.mark.parametrize(("kind", "name", "value"), KINDS)
@pytest.mark.parametrize("degrees", [0, 5, 90, 175, 180, 270])
def test_every_kind_is_read_in_any_direction(kind: zxingcpp.BarcodeFormat, name: str, value: str, degrees: int) -> None:
    """Format, value and place of a code are found, also of one that is turned, upside down or a little askew."""
    code = drawn(value, kind)
    turned = code.rotate(-degrees, expand=True, fillcolor="white", resample=Image.Resampling.BICUBIC)
    (found,) = barcodes_in(on_white((turned, (300, 200))), width=1200, height=900)
    assert (found.format, found.value, found.encoding) == (name, value, "text")
    xs, ys = [x for x, _ in found.polygon], [y for _, y in found.polygon]
    assert len(found.polygon) == 4
    assert 300 <= min(xs) < max(xs) <= 300 + turned.width
    assert 200 <= min(ys) < max(ys) <= 200 + turned.height


@pytest.mark.parametrize("degrees", [30, 45, 60, -45, 225])
def test_a_linear_code_far_askew_is_read_in_the_turned_image(degrees: int) -> None:
    """Turned by 45 degrees an image shows such a code; its place is that in the image itself."""
    code = drawn("5901234123457", Kind.EAN13)
    askew = code.rotate(degrees, expand=True, fillcolor="white", resample=Image.Resampling.BICUBIC)
    image = on_white((askew, (500, 150)))
    (found,) = barcodes_in(image, width=2400, height=1800, turned=45)
    assert found.value == "5901234123457"
    assert all(1000 <= x <= 1000 + 2 * askew.width and 300 <= y <= 300 + 2 * askew.height for x, y in found.polygon)
    middle = np.mean(found.polygon, axis=0)
    assert middle == pytest.approx((1000 + askew.width, 300 + askew.height), abs=40)  # its white margins differ


def test_several_codes_are_read_from_top_to_bottom() -> None:
    """Codes of different kinds in one image are all found; a limit keeps the uppermost."""
    places = [(20, 20), (20, 260), (20, 520), (700, 20), (700, 300), (700, 600)]
    image = on_white(*((drawn(value, kind), at) for (kind, _, value), at in zip(KINDS, places, strict=True)))
    found = barcodes_in(image, width=1200, height=900)
    assert sorted((code.format, code.value) for code in found) == sorted((name, value) for _, name, value in KINDS)
    tops = [code.polygon[0][1] for code in found]
    assert tops == sorted(tops)
    assert barcodes_in(image, width=1200, height=900, most=2) == found[:2]


def test_all_values_together_fit_into_an_event(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more than an event can carry, the uppermost codes are kept."""
    image = on_white((drawn("a" * 300, Kind.QRCode), (20, 20)), (drawn("b" * 300, Kind.QRCode), (500, 450)))
    monkeypatch.setattr("agents.core.barcodes._MOST_BYTES", 700)
    assert [code.value[0] for code in barcodes_in(image, width=1200, height=900)] == ["a"]


def test_the_polygon_is_in_pixels_of_the_original_size() -> None:
    """Corners are clockwise from the code's own top left, multiplied to the size before scaling down."""
    image = on_white((drawn("x", Kind.QRCode), (100, 50)))
    (code,) = barcodes_in(image, width=4800, height=3600)
    (upside_down,) = barcodes_in(image.rotate(180), width=4800, height=3600)
    (left, top), (right, _), (_, bottom), _ = code.polygon
    assert left < right and top < bottom
    assert 400 < left < 560 and 200 < top < 360
    assert upside_down.polygon[0] == pytest.approx((4800 - left, 3600 - top), abs=12)


@pytest.mark.parametrize("value", [bytes(range(256)), b"\x00\x01\xff\xfe\x80"])
def test_bytes_that_are_no_text_are_base64(value: bytes) -> None:
    """A value of bytes is marked and comes back whole."""
    (found,) = barcodes_in(on_white((drawn(value, Kind.QRCode), (50, 50))), width=1200, height=900)
    assert found.encoding == "base64"
    assert base64.b64decode(found.value) == value


def test_a_code_in_a_photo_is_read(images_dir: Path) -> None:
    """A code is found within a photo, with its place."""
    with Image.open(images_dir / "photos" / "pets.jpg") as photo:
        image = photo.convert("RGB")
    code = drawn("in a photo", Kind.QRCode)
    image.paste(code, (60, 40))
    (found,) = barcodes_in(image, width=image.width, height=image.height)
    assert found.value == "in a photo"
    assert all(60 <= x <= 60 + code.width and 40 <= y <= 40 + code.height for x, y in found.polygon)


def test_no_photo_has_a_code(images_dir: Path) -> None:
    """In none of the images of the test data, which show no code, is one read, as they are and turned."""
    wrong, looked = {}, 0
    for path in sorted(path for path in images_dir.rglob("*") if path.is_file()):
        try:
            pixels = decode(path.read_bytes(), Limits(max_pixels=40_000_000)).image.convert("RGBA").convert("RGB")
        except (Refusal, ValueError):  # ValueError: a mode that the sanitizer converts by its profile
            continue
        looked += 1
        for turned in (0, 45):
            if found := barcodes_in(pixels, width=pixels.width, height=pixels.height, turned=turned):
                wrong[path.name, turned] = found
    assert not wrong
    assert looked > 100


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (2, 2), (3, 700)])
def test_tiny_and_thin_images_have_no_code(size: tuple[int, int]) -> None:
    """No size is an error."""
    noise = np.random.default_rng(7).integers(0, 256, (size[1], size[0]), np.uint8)
    assert barcodes_in(Image.fromarray(noise), width=size[0], height=size[1]) == ()
