"""The first frame of a GIF on its canvas: transparent where the frame does not reach, whatever the background colour.

GIF89a specification, sections 18 and 20; browsers ignore the background colour.
"""

from __future__ import annotations

from PIL import Image

Box = tuple[int, int, int, int]


def on_canvas(image: Image.Image, frame: Box) -> Image.Image:
    """Return a loaded GIF with everything outside `frame` (left, top, right, bottom) transparent."""
    if frame == (0, 0, *image.size):
        return image
    canvas = image.convert("RGBA")
    alpha = Image.new("L", image.size, 0)
    alpha.paste(canvas.getchannel("A").crop(frame), frame[:2])
    canvas.putalpha(alpha)
    return canvas
