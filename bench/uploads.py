"""Photos for the pipeline benchmarks, cropped differently, so that no two have the same bytes."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image


def varied(data_dir: Path, count: int) -> list[bytes]:
    """Return `count` different JPEGs of about 0.1 to 1.2 megapixels, cut from the test photos, some with signs."""
    folder = data_dir / "images"
    signs = [folder / "ocr" / name for name in ("chinese.jpg", "english.png", "korean.png")]
    paths = [*sorted((folder / "photos").iterdir()), *sorted((folder / "clip_golden").iterdir()), *signs]
    found = []
    for number in range(count):
        with Image.open(paths[number % len(paths)]) as source:
            photo = source.convert("RGB")
        cut = number // len(paths)
        photo = photo.crop((cut, cut, photo.width - cut, photo.height - cut))
        stream = io.BytesIO()
        photo.save(stream, "JPEG", quality=88)
        found.append(stream.getvalue())
    return found


def twelve_megapixels(data_dir: Path, count: int) -> list[bytes]:
    """Return `count` different 4000 x 3000 JPEGs."""
    with Image.open(data_dir / "images" / "formats" / "gain-map.jpg") as source:
        photo = source.convert("RGB").crop((0, 0, 2880, 2160))
    found = []
    for number in range(count):
        shifted = photo.crop((number, number, photo.width, photo.height)).resize((4000, 3000))
        stream = io.BytesIO()
        shifted.save(stream, "JPEG", quality=90)
        found.append(stream.getvalue())
    return found


def random_clip(folder: Path) -> Path:
    """Write ViT-B/32 with seeded random weights: the same computation without the official weights."""
    import open_clip  # noqa: PLC0415 - slow import, needed only here
    import torch  # noqa: PLC0415

    torch.manual_seed(7)
    path = folder / "random-clip.pt"
    torch.save(open_clip.create_model("ViT-B-32-quickgelu", pretrained=None).state_dict(), path)
    return path


def small(data_dir: Path, count: int) -> list[bytes]:
    """Return `count` different JPEGs of about 300 x 300 pixels, cut from the test photos."""
    paths = sorted((data_dir / "images" / "photos").iterdir())
    photos = []
    for path in paths:
        with Image.open(path) as source:
            photo = source.convert("RGB")
        photo.thumbnail((400, 400))
        photos.append(photo)
    found = []
    for number in range(count):
        photo = photos[number % len(photos)]
        down, right = divmod(number // len(photos), 60)
        stream = io.BytesIO()
        photo.crop((right, down, photo.width - 60 + right, photo.height - 60 + down)).save(stream, "JPEG", quality=88)
        found.append(stream.getvalue())
    return found
