from __future__ import annotations

import struct

import numpy as np
import numpy.typing as npt
import pytest

from agents.core.colour import to_upright_srgb
from agents.core.decode import Limits, Refusal, decode
from agents.core.formats import bmp
from schemas.values import ErrorCode

WIDTH, HEIGHT = 15, 11
RGB, RLE8, RLE4, BITFIELDS, ALPHA_BITFIELDS = 0, 1, 2, 3, 6
Pixels = npt.NDArray[np.int64]


def _bmp(
    body: bytes, bits: int, compression: int, *, header: int = 40, masks: tuple[int, ...] = (), palette: bytes = b"",
    height: int = HEIGHT,
) -> bytes:  # fmt: skip
    colours = len(palette) // 4
    info = struct.pack("<IiiHHIIiiII", header, WIDTH, height, 1, bits, compression, len(body), 0, 0, colours, 0)
    info += struct.pack(f"<{len(masks)}I", *masks)
    info = info.ljust(header, b"\0")
    offset = 14 + len(info) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + info + palette + body


def _stored(masks: tuple[int, ...], bits: int) -> tuple[Pixels, Pixels]:
    """Return pixels that use all values of each mask, and the samples they show, 0 to 255."""
    pixels = np.zeros((HEIGHT, WIDTH), np.int64)
    shown = np.zeros((HEIGHT, WIDTH, len(masks)), np.int64)
    for channel, mask in enumerate(masks):
        lowest = mask & -mask
        most = mask // lowest
        samples = np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * (2 * channel + 3) * (most // 31 + 1) % (most + 1)
        pixels |= samples * lowest
        shown[..., channel] = np.round(samples * 255 / most)
    assert pixels.max() < 1 << bits
    return pixels, shown


def _rows(pixels: Pixels, bits: int) -> bytes:
    return b"".join(
        line.tobytes().ljust((WIDTH * bits // 8 + 3) // 4 * 4, b"\0") for line in pixels.astype(f"<u{bits // 8}")
    )


def _shown(data: bytes) -> npt.NDArray[np.int16]:
    return np.asarray(to_upright_srgb(decode(data, Limits()).image).convert("RGBA")).astype(np.int16)


MASKS = {
    "565": (16, (0xF800, 0x07E0, 0x001F)),
    "555": (16, (0x7C00, 0x03E0, 0x001F)),
    "444": (16, (0x0F00, 0x00F0, 0x000F)),
    "bgr 565": (16, (0x001F, 0x07E0, 0xF800)),
    "332": (16, (0x00E0, 0x001C, 0x0003)),
    "888": (32, (0xFF0000, 0xFF00, 0xFF)),
    "bgr 888": (32, (0xFF, 0xFF00, 0xFF0000)),
    "888 on top": (32, (0xFF000000, 0xFF0000, 0xFF00)),
    "777": (32, (0x0FE00000, 0x001FC000, 0x00003F80)),
    "10 bits": (32, (0x3FF00000, 0x000FFC00, 0x000003FF)),
    "uneven": (32, (0xFFF00000, 0x000C0000, 0x00000001)),
}
ALPHA_MASKS = {
    "1555": (16, (0x7C00, 0x03E0, 0x001F, 0x8000)),
    "4444": (16, (0x0F00, 0x00F0, 0x000F, 0xF000)),
    "8888": (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000)),
    "alpha below": (32, (0xFF000000, 0xFF0000, 0xFF00, 0xFF)),
    "2 bits of alpha": (32, (0x3FF00000, 0x000FFC00, 0x000003FF, 0xC0000000)),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("direction", [1, -1])
def test_samples_lie_where_the_masks_say(name: str, header: int, direction: int) -> None:
    """Any masks in any header, bottom-up and top-down."""
    bits, masks = MASKS[name]
    pixels, shown = _stored(masks, bits)
    body = _rows(pixels[::-direction], bits)
    found = _shown(_bmp(body, bits, BITFIELDS, header=header, masks=masks, height=direction * HEIGHT))
    assert np.abs(found[..., :3] - shown).max() <= 1
    assert (found[..., 3] == 255).all()


@pytest.mark.parametrize("name", ALPHA_MASKS)
@pytest.mark.parametrize("header", [56, 108, 124])
def test_alpha_lies_where_its_mask_says(name: str, header: int) -> None:
    """In 16 and 32 bits, in each header that has a mask for it."""
    bits, masks = ALPHA_MASKS[name]
    pixels, shown = _stored(masks, bits)
    found = _shown(_bmp(_rows(pixels[::-1], bits), bits, BITFIELDS, header=header, masks=masks))
    assert np.abs(found - shown).max() <= 1


def test_a_short_header_has_an_alpha_mask_behind_it_if_its_compression_says_so() -> None:
    """BI_ALPHABITFIELDS puts four masks behind a header of 40 bytes."""
    bits, masks = ALPHA_MASKS["4444"]
    pixels, shown = _stored(masks, bits)
    found = _shown(_bmp(_rows(pixels[::-1], bits), bits, ALPHA_BITFIELDS, masks=masks))
    assert np.abs(found - shown).max() <= 1


def test_alpha_that_is_zero_everywhere_counts_as_absent() -> None:
    """Many programs leave the alpha bits unset; Chromium shows such files as opaque."""
    bits, masks = ALPHA_MASKS["8888"]
    pixels, shown = _stored(masks[:3], bits)
    found = _shown(_bmp(_rows(pixels[::-1], bits), bits, BITFIELDS, header=124, masks=masks))
    assert np.array_equal(found[..., :3], shown)
    assert (found[..., 3] == 255).all()


@pytest.mark.parametrize("bits", [16, 32])
@pytest.mark.parametrize("header", [40, 108])
def test_without_masks_the_usual_ones_hold(bits: int, header: int) -> None:
    """BI_RGB is 5 bits each in 16, and 8 bits each in 32; the bits above are no alpha."""
    masks = (0x7C00, 0x03E0, 0x001F) if bits == 16 else (0xFF0000, 0xFF00, 0xFF)
    pixels, shown = _stored(masks, bits)
    found = _shown(_bmp(_rows(pixels[::-1], bits), bits, RGB, header=header))
    assert np.abs(found[..., :3] - shown).max() <= 1
    assert (found[..., 3] == 255).all()


def test_masks_with_gaps_are_refused() -> None:
    """A mask is one run of bits."""
    data = _bmp(bytes(4 * WIDTH * HEIGHT), 32, BITFIELDS, masks=(0xF0F00000, 0xFF00, 0xFF))
    with pytest.raises(Refusal) as caught:
        decode(data, Limits())
    assert caught.value.code == ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize("compression", [BITFIELDS, RLE8])
def test_missing_pixels_are_refused(compression: int) -> None:
    """A file without its last bytes is truncated, in samples and in runs."""
    if compression == BITFIELDS:
        whole = _bmp(bytes(4 * WIDTH * HEIGHT), 32, BITFIELDS, masks=(0xFF0000, 0xFF00, 0xFF))
    else:
        whole = _bmp(bytes([WIDTH, 1, 0, 0]) * HEIGHT, 8, RLE8, palette=bytes(1024))
    assert decode(whole, Limits()).image.size == (WIDTH, HEIGHT)
    with pytest.raises(Refusal) as caught:
        decode(whole[:-7], Limits())
    assert caught.value.code == ErrorCode.TRUNCATED_IMAGE


def _palette(bits: int) -> tuple[bytes, Pixels]:
    colours = np.arange(3 << bits).reshape(-1, 3) * 11 % 251
    return np.insert(colours[:, ::-1], 3, 0, axis=-1).astype(np.uint8).tobytes(), colours


def test_runs_literals_deltas_and_ends_of_rle8() -> None:
    """What no run sets is transparent; what runs over a line's end is dropped."""
    palette, colours = _palette(8)
    body = bytes([200, 7]) + b"\0\0"  # longer than the line
    body += bytes([0, 5, 1, 2, 3, 4, 5, 0]) + bytes([3, 9]) + b"\0\0"  # five literals, padded
    body += b"\0\2\4\3" + bytes([2, 8]) + b"\0\1"  # four to the right, three up
    indices = np.full((HEIGHT, WIDTH), -1)
    indices[0], indices[1, :8], indices[5, 4:6] = 7, [1, 2, 3, 4, 5, 9, 9, 9], 8
    found = _shown(_bmp(body, 8, RLE8, palette=palette))[::-1]
    assert np.array_equal(found[..., 3], np.where(indices >= 0, 255, 0))
    assert np.array_equal(found[indices >= 0][:, :3], colours[indices[indices >= 0]])


def test_runs_literals_and_ends_of_rle4() -> None:
    """Two indices alternate in a run; literals lie two in a byte."""
    palette, colours = _palette(4)
    body = bytes([5, 0x12]) + bytes([0, 5, 0x34, 0x56, 0x70, 0]) + b"\0\0" + bytes([WIDTH, 0x99]) + b"\0\1"
    indices = np.full((HEIGHT, WIDTH), -1)
    indices[0, :10], indices[1] = [1, 2, 1, 2, 1, 3, 4, 5, 6, 7], 9
    found = _shown(_bmp(body, 4, RLE4, palette=palette))[::-1]
    assert np.array_equal(found[..., 3], np.where(indices >= 0, 255, 0))
    assert np.array_equal(found[indices >= 0][:, :3], colours[indices[indices >= 0]])


def test_runs_that_set_every_pixel_are_opaque_and_need_no_end_code() -> None:
    """A file whose last code is missing lacks no pixel."""
    palette, _ = _palette(8)
    data = _bmp(bytes([WIDTH, 1, 0, 0]) * (HEIGHT - 1) + bytes([WIDTH, 1]), 8, RLE8, palette=palette)
    assert to_upright_srgb(decode(data, Limits()).image).mode == "RGB"


@pytest.mark.parametrize("delta", [bytes([WIDTH + 1, 0]), bytes([0, HEIGHT + 1])])
def test_a_delta_that_leaves_the_image_is_refused(delta: bytes) -> None:
    """It cannot be right."""
    data = _bmp(b"\0\2" + delta + b"\0\1", 8, RLE8, palette=bytes(1024))
    with pytest.raises(Refusal) as caught:
        decode(data, Limits())
    assert caught.value.code == ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize("compression", [BITFIELDS, RLE8])
@pytest.mark.parametrize("height", [1 << 30, -(1 << 31)])
def test_a_huge_declared_size_is_refused_before_allocation(
    monkeypatch: pytest.MonkeyPatch, compression: int, height: int
) -> None:
    """The limits hold before any pixel is decoded."""
    monkeypatch.delattr(bmp, "decode")
    bits, masks = (32, (0xFF0000, 0xFF00, 0xFF)) if compression == BITFIELDS else (8, ())
    with pytest.raises(Refusal) as caught:
        decode(_bmp(bytes(2000), bits, compression, masks=masks, height=height), Limits())
    assert caught.value.code == ErrorCode.DIMENSIONS_TOO_LARGE
