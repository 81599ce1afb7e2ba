"""Image formats by their first bytes."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.formats import MEDIA_TYPES, SNIFF_BYTES, sniff

KNOWN = {
    ".jpg": "jpeg", ".png": "png", ".bmp": "bmp", ".tif": "tiff", ".tiff": "tiff",
    ".webp": "webp", ".gif": "gif", ".avif": "avif", ".heif": "heic", ".heic": "heic",
}  # fmt: skip


@pytest.mark.parametrize("folder", ["photos", "formats", "exif"])
def test_every_real_image_is_recognized(images_dir: Path, folder: str) -> None:
    """Every good image is recognized as its format; SVG and JPEG 2000 are unsupported."""
    seen = 0
    for path in sorted((images_dir / folder).rglob("*")):
        if path.suffix in (*KNOWN, ".svg", ".jp2"):
            assert sniff(path.read_bytes()[:SNIFF_BYTES]) == KNOWN.get(path.suffix), path.name
            seen += 1
    assert seen


@given(st.binary(max_size=200))
def test_only_the_first_bytes_matter(data: bytes) -> None:
    """No bytes raise, and bytes after the first SNIFF_BYTES change nothing."""
    found = sniff(data)
    assert found is None or found in MEDIA_TYPES
    assert sniff(data[:SNIFF_BYTES]) == found


@pytest.mark.parametrize(
    ("major", "compatible", "name"),
    [
        (b"avif", b"mif1miaf", "avif"),
        (b"mif1", b"mif1avif", "avif"),
        (b"mif1", b"mif1heic", "heic"),
        (b"heix", b"mif1heix", "heic"),
        (b"isom", b"isommp41", None),
        (b"qt  ", b"qt  ", None),
    ],
)
def test_a_heif_is_recognized_by_its_brands(major: bytes, compatible: bytes, name: str | None) -> None:
    """AVIF and HEIC share a container: brands distinguish them from each other and from videos."""
    box = b"ftyp" + major + bytes(4) + compatible
    assert sniff((len(box) + 4).to_bytes(4, "big") + box + b"junk" * 20) == name
