from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.metrics import structural_similarity

from agents.core.resize import fitted, open_master, render

SIDES = (150, 600, 1200, 4096)


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _decoded(body: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(body))
    image.load()
    return image


def _photo(images_dir: Path, width: int, height: int) -> Image.Image:
    photo = Image.open(images_dir / "photos" / "kite_and_cold.jpg").convert("RGB")
    return photo.resize((width, height), Image.Resampling.LANCZOS)


@pytest.mark.parametrize(
    ("size", "side", "wanted"),
    [((3024, 4032), 150, (112, 150)), ((10_000, 3), 600, (600, 1)), ((150, 150), 150, (150, 150)), ((1, 1), 9, (1, 1))],
)
def test_no_size_ends_at_zero(size: tuple[int, int], side: int, wanted: tuple[int, int]) -> None:
    """Extreme ratios keep at least one pixel."""
    assert fitted(size, side) == wanted


def test_a_rendition_equals_lanczos_from_full_size(images_dir: Path) -> None:
    """Small renditions are byte-identical to a plain resize; the largest, with less effort, looks alike."""
    data = _saved(_photo(images_dir, 3000, 2000), "JPEG", quality=92)
    full = Image.open(io.BytesIO(data)).convert("RGB")
    image = open_master(data, SIDES)
    for side in SIDES:
        size = fitted((3000, 2000), side)
        reference = _saved(full.resize(size, Image.Resampling.LANCZOS), "WEBP", quality=85)
        ours = render(image, size)
        if side < 4096:
            assert ours == reference, side
        else:
            pair = (np.asarray(_decoded(body).convert("L")) for body in (ours, reference))
            assert structural_similarity(*pair) >= 0.97


def test_shrink_on_load_changes_neither_size_nor_looks(images_dir: Path) -> None:
    """When only small renditions are needed the JPEG is decoded small, and the result looks the same."""
    data = _saved(_photo(images_dir, 3000, 2000), "JPEG", quality=92)
    small = open_master(data, [600])
    wanted = Image.open(io.BytesIO(data)).resize((600, 400), Image.Resampling.LANCZOS)
    ours, reference = (np.asarray(image.convert("L")) for image in (small, wanted))
    assert structural_similarity(ours, reference) >= 0.985


def test_a_master_larger_than_the_largest_side_is_decoded_to_that_side() -> None:
    """The decoded image is at most the largest side, and never enlarged."""
    for kind in ("JPEG", "PNG"):
        data = _saved(Image.new("RGB", (900, 500), "teal"), kind)
        assert open_master(data, [40, 300]).size == (300, 167)
        assert open_master(data, [40, 3000]).size == (900, 500)


def test_alpha_survives_without_a_dark_seam() -> None:
    """Transparent black beside opaque white stays white at the edge: colours are weighted by alpha."""
    pixels = np.zeros((400, 400, 4), np.uint8)
    pixels[:, 200:] = 255
    small = open_master(_saved(Image.fromarray(pixels), "PNG"), [150])
    seen = np.asarray(small)
    assert seen[..., :3][seen[..., 3] > 8].min() >= 250
    stored = np.asarray(_decoded(render(small, small.size)))
    assert stored.shape == (150, 150, 4)
    assert (stored[:, 0, 3].max(), stored[:, -1, 3].min()) == (0, 255)


def test_renditions_are_deterministic_and_without_metadata(images_dir: Path) -> None:
    """The same master gives the same WebP, without metadata even if the master has some."""
    exif = Image.Exif()
    exif[0x010F] = "maker"
    data = _saved(_photo(images_dir, 1500, 1000), "JPEG", exif=exif, icc_profile=b"profile", comment=b"hello")
    sizes = [fitted((1500, 1000), side) for side in SIDES]
    first, second = ([render(open_master(data, SIDES), size) for size in sizes] for _ in range(2))
    assert first == second
    for body in first:
        assert body[12:16] == b"VP8 "
        assert b"maker" not in body
        assert b"profile" not in body


def test_grey_and_extreme_masters_are_rendered() -> None:
    """Every form of master gives a rendition."""
    for image in (Image.new("L", (5, 700), 9), Image.new("RGB", (1, 1)), Image.new("RGBA", (1300, 2))):
        opened = open_master(_saved(image, "PNG"), SIDES)
        assert _decoded(render(opened, fitted(opened.size, 150))).size == fitted(image.size, 150)


def test_masters_the_sanitizer_cannot_write_are_refused() -> None:
    """Other formats, and masters above the limit, raise: the sanitizer did not write them."""
    with pytest.raises(OSError, match="cannot identify"):
        open_master(_saved(Image.new("RGB", (4, 4)), "GIF"), SIDES)
    with pytest.raises(ValueError, match="40 x 40"):
        open_master(_saved(Image.new("RGB", (40, 40)), "PNG"), SIDES, max_pixels=1000)
