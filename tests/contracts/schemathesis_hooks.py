"""What Schemathesis cannot know from the document: how files look that are images. Named in schemathesis.toml."""

from __future__ import annotations

import io

import schemathesis
from hypothesis import strategies as st
from PIL import Image

SIDE = 24  # pixels at most: the service must decode every one


def image(name: str, width: int, height: int, colour: tuple[int, int, int]) -> bytes:
    """Return an image of one colour."""
    stream = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(stream, name)
    return stream.getvalue()


def register() -> None:
    """Make what is declared to be an image an image."""
    side, shade = st.integers(1, SIDE), st.integers(0, 255)
    for name in ("jpeg", "png", "bmp", "tiff", "webp", "gif"):
        files = st.builds(image, st.just(name), side, side, st.tuples(shade, shade, shade))
        schemathesis.openapi.media_type(f"image/{name}", files)


register()
