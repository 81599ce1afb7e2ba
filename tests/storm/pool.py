"""The uploaded images: small photos, signs, patterns and hostile files; most can be made unique."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

_PHOTOS = (
    "photos/cat_720p.jpg",
    "photos/pets.jpg",
    "photos/owl.jpg",
    "photos/kite_and_cold.jpg",
    "photos/grace_hopper.bmp",
    "clip_golden/123_456.jpg",
    "clip_golden/416_264.jpg",
    "exif/Landscape_6.jpg",
)
_UNCHANGED = ("formats/basn3p08.png", "formats/5_webp_a.webp", "formats/hopper.avif", "formats/cat.jpg")
_HOSTILE = ("hostile/truncated.jpg", "hostile/corrupt-header.jpg", "hostile/broken.png", "hostile/xcrn0g04.png")
BOMBS = ("hostile/decompression_bomb.gif", "hostile/png_decompression_dos.png", "hostile/giant-image.jpg")
_WORDS = ("HARBOUR", "STATION", "GARDEN", "MARKET", "BRIDGE", "LIBRARY", "MUSEUM", "THEATRE")
_LONGEST = 320  # pixels; small, since the suite does not test image size


@dataclass(frozen=True, slots=True)
class Content:
    """A distinct picture. A good one completes; any other is rejected by the gateway or the sanitizer."""

    name: str
    data: bytes
    good: bool = True
    extends: bool = False  # bytes may be appended: another original with the same pixels

    def unique(self, number: int) -> bytes:
        """Return the data with a unique suffix and the same pixels; unchanged if nothing may be appended."""
        return self.data + f"storm {number:08d}".encode() if self.extends else self.data


@dataclass(frozen=True, slots=True)
class Pool:
    """All contents by name, and the names of those kept for faults that need a computation."""

    contents: dict[str, Content]
    fresh: tuple[str, ...]

    def steady(self) -> list[Content]:
        """Return the contents of the steady stream."""
        return [content for name, content in self.contents.items() if name not in self.fresh and name not in BOMBS]


def make_pool(images: Path, *, fresh: int, variants: bool = True) -> Pool:
    """Return the contents, the same for the same arguments; without variants about half as many."""
    made = [*_photos(images), *_signs(), *_patterns()]
    made = [*(made if variants else made[::2]), *_unchanged(images)]
    made += [Content(f"fresh-{number}", _drawn(1000 + number), extends=True) for number in range(fresh)]
    return Pool({content.name: content for content in made}, tuple(f"fresh-{number}" for number in range(fresh)))


def _photos(images: Path) -> Iterator[Content]:
    for name in _PHOTOS:
        with Image.open(images / name) as photo:
            small = photo.convert("RGB")
        small.thumbnail((_LONGEST, _LONGEST))
        yield Content(name, _jpeg(small), extends=True)
        yield Content(f"{name} mirrored", _jpeg(small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)), extends=True)


def _signs() -> Iterator[Content]:
    for word in _WORDS:
        sign = Image.new("RGB", (_LONGEST, 100), "white")
        ImageDraw.Draw(sign).text((20, 25), word, "black", ImageFont.load_default(44))
        yield Content(f"sign {word}", _jpeg(sign), extends=True)


def _patterns() -> Iterator[Content]:
    for number in range(6):
        yield Content(f"pattern {number}", _drawn(number), extends=True)


def _unchanged(images: Path) -> Iterator[Content]:
    for name in _UNCHANGED:
        yield Content(name, (images / name).read_bytes())
    for name in (*_HOSTILE, *BOMBS):
        yield Content(name, (images / name).read_bytes(), good=False)
    yield Content("no image", b"this is a letter, not a picture", good=False)
    yield Content("cut in half", _drawn(99)[:1500], good=False)


def _drawn(seed: int) -> bytes:
    choose = random.Random(seed)
    drawing = Image.new("RGB", (200, 160), _colour(choose))
    brush = ImageDraw.Draw(drawing)
    for _ in range(12):
        x, y = choose.randrange(160), choose.randrange(120)
        brush.rectangle((x, y, x + choose.randrange(8, 60), y + choose.randrange(8, 60)), _colour(choose))
    return _jpeg(drawing)


def _colour(choose: random.Random) -> tuple[int, int, int]:
    return choose.randrange(256), choose.randrange(256), choose.randrange(256)


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=88)
    return out.getvalue()
