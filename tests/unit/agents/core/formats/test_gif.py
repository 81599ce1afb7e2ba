from __future__ import annotations

import io
import struct

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from agents.core.colour import to_upright_srgb
from agents.core.decode import Limits, Refusal, decode
from schemas.values import ErrorCode

CANVAS = (24, 18)
COLOURS = np.arange(48).reshape(16, 3) * 5


def _image_block(left: int, top: int, width: int, height: int) -> bytes:
    """Return a frame of GIF: Pillow's encoding of ascending colours, placed on another canvas."""
    indices = (np.arange(width * height).reshape(height, width) % 16).astype(np.uint8)
    frame = Image.fromarray(indices)
    frame = frame.convert("P")
    frame.putpalette(COLOURS.astype(np.uint8).tobytes())
    out = io.BytesIO()
    frame.save(out, "GIF", optimize=False)
    data = out.getvalue()
    table = 3 << (data[10] & 7) + 1
    start = data.index(b"\x2c" + struct.pack("<HHHH", 0, 0, width, height), 13 + table)
    return b"\x2c" + struct.pack("<HHHH", left, top, width, height) + data[start + 9 : -1]


def _gif(*frames: tuple[int, int, int, int], transparent: int | None = None, background: int = 3) -> bytes:
    screen = b"GIF89a" + struct.pack("<HHBBB", *CANVAS, 0xF3, background, 0) + COLOURS.astype(np.uint8).tobytes()
    control = b"" if transparent is None else b"\x21\xf9\x04\x01\0\0" + bytes([transparent]) + b"\0"
    return screen + b"".join(control + _image_block(*frame) for frame in frames) + b"\x3b"


def _shown(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(to_upright_srgb(decode(data, Limits()).image).convert("RGBA"))


@pytest.mark.parametrize("frame", [(5, 3, 16, 12), (0, 0, 16, 12), (8, 6, 16, 12), (0, 0, 24, 1), (23, 17, 1, 1)])
@pytest.mark.parametrize("transparent", [None, 2])
@pytest.mark.parametrize("background", [0, 3])
def test_the_canvas_around_the_first_frame_is_transparent(
    frame: tuple[int, int, int, int], transparent: int | None, background: int
) -> None:
    """Whatever the background colour, and besides the pixels of the frame's own transparent colour."""
    shown = _shown(_gif(frame, transparent=transparent, background=background))
    left, top, width, height = frame
    indices = np.arange(width * height).reshape(height, width) % 16
    wanted = np.zeros((CANVAS[1], CANVAS[0]), np.uint8)
    wanted[top : top + height, left : left + width] = np.where(indices == transparent, 0, 255)
    assert np.array_equal(shown[..., 3], wanted)
    inside = shown[top : top + height, left : left + width]
    opaque = inside[..., 3] > 0
    assert np.array_equal(inside[opaque][:, :3], COLOURS[indices][opaque])


def test_the_first_of_several_frames_counts() -> None:
    """A later frame fills no part of the canvas."""
    decoded = decode(_gif((3, 4, 8, 8), (0, 0, 24, 18)), Limits())
    assert decoded.frames == 2
    assert np.count_nonzero(np.asarray(decoded.image.convert("RGBA"))[..., 3]) == 64


def test_a_frame_as_large_as_the_canvas_stays_opaque() -> None:
    """Without a free part the image has no alpha."""
    assert to_upright_srgb(decode(_gif((0, 0, 24, 18)), Limits()).image).mode == "RGB"


def test_a_huge_canvas_around_a_small_frame_is_refused_before_it_is_allocated() -> None:
    """The limits count the canvas, not the frame."""
    data = bytearray(_gif((0, 0, 4, 4)))
    data[6:10] = struct.pack("<HH", 60_000, 60_000)
    with pytest.raises(Refusal) as caught:
        decode(bytes(data), Limits())
    assert caught.value.code == ErrorCode.DIMENSIONS_TOO_LARGE


def test_a_first_frame_that_is_cut_is_refused() -> None:
    """Pixels of the frame itself are not optional."""
    data = _gif((5, 3, 16, 12))
    with pytest.raises(Refusal):
        decode(data[:-60], Limits())
