from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, ImageCms

from agents.core.decode import Limits, Refusal, decode, sniff
from agents.core.frames import gif_frames
from schemas.values import ErrorCode
from tests.support import documents

LIMITS = Limits()


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _refused(data: bytes, limits: Limits = LIMITS) -> Refusal:
    with pytest.raises(Refusal) as caught:
        decode(data, limits)
    return caught.value


HOSTILE = {
    "65536-uint32-limit.png": ErrorCode.DIMENSIONS_TOO_LARGE,
    "broken.png": ErrorCode.CORRUPT_IMAGE,
    "broken_data_stream.png": ErrorCode.CORRUPT_IMAGE,
    "corrupt-header.jpg": ErrorCode.TRUNCATED_IMAGE,
    "decompression_bomb.gif": ErrorCode.DIMENSIONS_TOO_LARGE,
    "giant-image.jpg": ErrorCode.DIMENSIONS_TOO_LARGE,
    "png_decompression_dos.png": ErrorCode.CORRUPT_IMAGE,
    "reallybig.bmp": ErrorCode.DIMENSIONS_TOO_LARGE,
    "truncated.jpg": ErrorCode.TRUNCATED_IMAGE,
    "xcrn0g04.png": ErrorCode.CORRUPT_IMAGE,
}


def test_every_hostile_image_is_refused_with_its_code(images_dir: Path) -> None:
    """Each hostile file is refused with its code and a sentence."""
    seen = {path.name: _refused(path.read_bytes()) for path in (images_dir / "hostile").iterdir()}
    assert {name: refusal.code for name, refusal in seen.items()} == HOSTILE
    assert all(refusal.message.endswith(".") and len(refusal.message) > 20 for refusal in seen.values())


@pytest.mark.parametrize("name", ["formats/check.svg", "formats/relax.jp2"])
def test_unsupported_formats_are_refused(images_dir: Path, name: str) -> None:
    """SVG and JPEG 2000 are unsupported, by policy."""
    assert _refused((images_dir / name).read_bytes()).code == ErrorCode.UNSUPPORTED_FORMAT


@pytest.mark.parametrize(
    ("name", "found", "frames", "lossy"),
    [
        ("formats/hopper.avif", "avif", 1, True),
        ("formats/hopper_lzw.tif", "tiff", 1, False),
        ("formats/multipage.tiff", "tiff", 3, False),
        ("formats/rotating-squares.gif", "gif", 30, False),
        ("formats/rotating-squares.webp", "webp", 9, True),
        ("formats/basn2c16.png", "png", 1, False),
        ("formats/cat.jpg", "jpeg", 1, True),
        ("formats/gain-map.jpg", "jpeg", 1, True),
        ("photos/grace_hopper.bmp", "bmp", 1, False),
        ("exif/samplefilehub.heif", "heif", 1, True),
    ],
)
def test_formats_are_detected_by_their_bytes(images_dir: Path, name: str, found: str, frames: int, lossy: bool) -> None:
    """Format, number of frames and lossiness are read from the file itself."""
    decoded = decode((images_dir / name).read_bytes(), LIMITS)
    assert (decoded.format, decoded.frames, decoded.lossy) == (found, frames, lossy)


def test_an_empty_and_an_oversized_file_are_refused() -> None:
    """An empty and an oversized file have codes of their own."""
    assert _refused(b"").code == ErrorCode.EMPTY_FILE
    assert _refused(b"\xff\xd8\xff" + bytes(100), Limits(max_bytes=50)).code == ErrorCode.FILE_TOO_LARGE


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_a_truncated_file_is_refused(images_dir: Path, kind: str) -> None:
    """An image without its second half is refused in every format, as truncated or as damaged."""
    photo = Image.open(images_dir / "photos" / "cat_720p.jpg")
    data = _saved(photo, kind)
    code = _refused(data[: len(data) // 2]).code
    assert code in {ErrorCode.TRUNCATED_IMAGE, ErrorCode.CORRUPT_IMAGE}


def test_a_truncated_heic_is_refused(images_dir: Path) -> None:
    """The same for HEIC."""
    data = (images_dir / "exif" / "samplefilehub.heif").read_bytes()
    assert _refused(data[: len(data) // 2]).code in {ErrorCode.TRUNCATED_IMAGE, ErrorCode.CORRUPT_IMAGE}


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_the_pixels_of_all_frames_count(kind: str) -> None:
    """The limit applies to all frames of an animation, counted from its headers."""
    first, *others = (Image.new("RGB", (40, 30), (shade, 90, 255 - shade)) for shade in range(0, 250, 25))
    data = _saved(first, kind, save_all=True, append_images=others, duration=50)
    assert decode(data, Limits(max_pixels=12_000)).frames == 10
    assert _refused(data, Limits(max_pixels=11_999)).code == ErrorCode.TOO_MANY_PIXELS
    assert _refused(data, Limits(max_frames=9)).code == ErrorCode.TOO_MANY_PIXELS


def test_each_page_of_a_tiff_has_the_pixels_to_itself() -> None:
    """Pages are decoded one at a time, so the limit of pixels is that of the page; their number is limited as well."""
    data = documents.tiff(
        [Image.new("RGB", (40, 30), (shade, 9, 9)) for shade in range(8)] + [Image.new("L", (60, 30))]
    )
    decoded = decode(data, Limits(max_pixels=1200))
    assert (decoded.frames, decoded.pages) == (9, 9)
    assert decode(data, Limits(max_pixels=1200), 8).image.getpixel((0, 0)) == (7, 9, 9)
    with pytest.raises(Refusal) as caught:
        decode(data, Limits(max_pixels=1799), 9)
    assert caught.value.code == ErrorCode.TOO_MANY_PIXELS
    assert _refused(data, Limits(max_frames=8)).code == ErrorCode.TOO_MANY_PIXELS


def test_a_preview_in_a_tiff_is_no_page() -> None:
    """A reduced image of the page before it (NewSubfileType 1) is counted among the frames, but not read."""
    page, preview = Image.new("L", (40, 30), 200), Image.new("L", (20, 15), 200)
    preview.encoderinfo = {"tiffinfo": {254: 1}}
    data = documents.tiff([page, preview, page])
    assert decode(data, LIMITS).frames == 3
    assert decode(data, LIMITS, 3).image.size == (40, 30)
    with pytest.raises(Refusal, match="preview"):
        decode(data, LIMITS, 2)


def test_a_page_of_a_tiff_has_its_own_colour_profile() -> None:
    """Pillow hands the first page's profile on to pages that have none; the page is read as sRGB then."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    first, second = Image.new("LAB", (9, 9), (200, 128, 128)), Image.new("RGB", (9, 9), (10, 200, 30))
    first.encoderinfo = {"icc_profile": profile}
    assert "icc_profile" not in decode(documents.tiff([first, second]), LIMITS, 2).image.info


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
def test_an_animation_is_no_document(kind: str) -> None:
    """Frames are not pages."""
    first, *others = (Image.new("RGB", (40, 30), (shade, 90, 255 - shade)) for shade in range(0, 250, 25))
    decoded = decode(_saved(first, kind, save_all=True, append_images=others, duration=50), LIMITS)
    assert (decoded.frames, decoded.pages) == (10, 1)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "AVIF"])
def test_the_limit_of_a_side_is_inclusive(kind: str) -> None:
    """An image of exactly the longest side is accepted, one pixel more is refused."""
    data = _saved(Image.new("RGB", (64, 20)), kind)
    assert decode(data, Limits(max_side=64)).image.size == (64, 20)
    assert _refused(data, Limits(max_side=63)).code == ErrorCode.DIMENSIONS_TOO_LARGE


def test_a_png_with_a_false_size_is_refused_by_its_header() -> None:
    """A 60-byte PNG that declares 100 000 x 1 pixels is not decoded."""
    header = struct.pack(">IIBBBBB", 100_000, 1, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + header
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    end = struct.pack(">I", 0) + b"IDAT" + struct.pack(">I", zlib.crc32(b"IDAT"))
    assert _refused(data + end).code == ErrorCode.DIMENSIONS_TOO_LARGE


def test_a_webp_with_a_false_canvas_is_refused_before_allocation() -> None:
    """The extended header's 24-bit sizes are checked before the decoder allocates two canvases of that size."""
    big = (16_383).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + bytes(4) + big + big
    assert _refused(b"RIFF" + struct.pack("<I", len(body)) + body).code == ErrorCode.DIMENSIONS_TOO_LARGE


@pytest.mark.parametrize("cut", range(0, 60, 7))
def test_every_fragment_of_a_header_is_refused(images_dir: Path, cut: int) -> None:
    """Any fragment of a file raises Refusal and no other error."""
    for path in sorted((images_dir / "formats").iterdir()):
        _refused(path.read_bytes()[:cut])


def test_sniffing_uses_magic_bytes() -> None:
    """Text, HTML, archives and non-image brands are not recognized."""
    for data in (b"", b"hello", b"<svg xmlns=", b"\n%PDF-1.7", b"PK\x03\x04", b"\x00\x00\x00\x18ftypisom" + bytes(12)):
        assert sniff(data) is None


def test_counting_gif_frames_stops_at_the_limit() -> None:
    """Counting stops after the limit, however long the file is."""
    frame = b"," + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    data = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + frame * 100_000 + b";"
    assert gif_frames(data, 50).count == 51
    assert _refused(data).code == ErrorCode.TOO_MANY_PIXELS
