from __future__ import annotations

import io
import lzma
import struct
import zlib
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from agents.core.colour import to_upright_srgb
from agents.core.decode import Limits, Refusal, decode
from schemas.values import ErrorCode

WIDTH, HEIGHT = 21, 18
TILE = 16
WIDTH_TAG, HEIGHT_TAG, BITS, COMPRESSION, PHOTOMETRIC, ORIENTATION, SAMPLES = 256, 257, 258, 259, 262, 274, 277
STRIPS, STRIP_ROWS, STRIP_SIZES, PLANAR, PREDICTOR = 273, 278, 279, 284, 317
TILE_WIDTH, TILE_HEIGHT, TILES, TILE_SIZES, EXTRA, FORMAT = 322, 323, 324, 325, 338, 339
WHITE_IS_ZERO, BLACK_IS_ZERO, RGB, CMYK, LAB = 0, 1, 2, 5, 8

Array = npt.NDArray[Any]
Fields = dict[int, tuple[int, ...]]


def _none(data: bytes) -> bytes:
    return data


COMPRESSIONS: dict[str, tuple[int, Callable[[bytes], bytes]]] = {
    "none": (1, _none),
    "deflate": (8, zlib.compress),
    "old deflate": (32946, zlib.compress),
    "lzma": (34925, lambda data: lzma.compress(data, check=lzma.CHECK_NONE)),
    "packbits": (32773, lambda data: b"".join(b"\0" + data[at : at + 1] for at in range(len(data)))),
}


def _tiff(fields: Fields, segments: list[bytes], *, tiled: bool = False, big_endian: bool = False) -> bytes:
    """Return a TIFF of one page; its segments come first, then its directory."""
    order = ">" if big_endian else "<"
    body, offsets = b"", []
    for segment in segments:
        offsets.append(8 + len(body))
        body += segment + bytes(len(segment) % 2)
    places = {TILES: offsets, TILE_SIZES: [len(one) for one in segments]}
    if not tiled:
        places = {STRIPS: offsets, STRIP_SIZES: [len(one) for one in segments]}
    every = {
        WIDTH_TAG: (WIDTH,),
        HEIGHT_TAG: (HEIGHT,),
        **fields,
        **{tag: tuple(value) for tag, value in places.items()},
    }
    at = 8 + len(body)
    after = at + 2 + 12 * len(every) + 4
    entries, values = struct.pack(order + "H", len(every)), b""
    for tag, numbers in sorted(every.items()):
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        entries += struct.pack(order + "HHI", tag, 4, len(numbers))
        entries += packed if len(packed) == 4 else struct.pack(order + "I", after + len(values))
        values += packed if len(packed) > 4 else b""
    head = (b"MM\0*" if big_endian else b"II*\0") + struct.pack(order + "I", at)
    return head + body + entries + bytes(4) + values


def _packed(rows: Array, bits: int, order: Literal["<", ">"]) -> bytes:
    """Return rows of samples: floats and whole bytes in their byte order, other depths packed."""
    if rows.dtype.kind == "f" or bits % 8 == 0:
        return rows.astype(rows.dtype.newbyteorder(order)).tobytes()
    wide = np.unpackbits(rows.astype(">u4").reshape(len(rows), -1, 1).view(np.uint8), axis=-1)[..., 32 - bits :]
    return np.packbits(wide.reshape(len(rows), -1), axis=-1).tobytes()


def _differenced(rows: Array, predictor: int) -> Array:
    """Apply predictor 2 (differences of samples) or 3 (of the bytes of floats) to rows of one segment."""
    if predictor == 1:
        return rows
    if predictor == 2:
        first = rows.copy()
        first[:, 1:] = rows[:, 1:] - rows[:, :-1]
        return first
    flat = rows.reshape(len(rows), -1)
    size = flat.dtype.itemsize
    split = np.moveaxis(flat.astype(f">f{size}").view(np.uint8).reshape(*flat.shape, size), 2, 1)
    pixels = split.reshape(len(rows), -1, rows.shape[2])
    out = pixels.copy()
    out[:, 1:] = pixels[:, 1:] - pixels[:, :-1]
    return out


def _file(
    samples: Array, bits: int, photometric: int, *, kind: int = 1, compression: str = "none", tiled: bool = False,
    separate: bool = False, big_endian: bool = False, predictor: int = 1, extra: tuple[int, ...] = (),
    orientation: int = 1,
) -> bytes:  # fmt: skip
    """Return samples of (height, width, samples) as a TIFF."""
    number, compress = COMPRESSIONS[compression]
    planes = [samples[..., [one]] for one in range(samples.shape[2])] if separate else [samples]
    segments = []
    for plane in planes:
        if tiled:
            padded = np.pad(plane, ((0, -HEIGHT % TILE), (0, -WIDTH % TILE), (0, 0)))
            places = [(y, x) for y in range(0, HEIGHT, TILE) for x in range(0, WIDTH, TILE)]
            parts = [padded[y : y + TILE, x : x + TILE] for y, x in places]
        else:
            parts = [plane[y : y + 7] for y in range(0, HEIGHT, 7)]
        for part in parts:
            ready = _differenced(part, predictor)
            segments.append(compress(_packed(ready, bits, ">" if big_endian else "<")))
    count = samples.shape[2]
    fields: Fields = {
        BITS: (bits,) * count, COMPRESSION: (number,), PHOTOMETRIC: (photometric,), SAMPLES: (count,),
        PLANAR: (2 if separate else 1,), PREDICTOR: (predictor,), FORMAT: (kind,) * count, ORIENTATION: (orientation,),
    }  # fmt: skip
    fields |= {EXTRA: extra} if extra else {}
    fields |= {TILE_WIDTH: (TILE,), TILE_HEIGHT: (TILE,)} if tiled else {STRIP_ROWS: (7,)}
    return _tiff(fields, segments, tiled=tiled, big_endian=big_endian)


def _ramp(count: int) -> npt.NDArray[np.float64]:
    """Return samples from 0 to 1, (height, width, count), different in each channel."""
    values = np.arange(HEIGHT * WIDTH * count).reshape(HEIGHT, WIDTH, count) * 37 % 1009 / 1008
    values[0, 0], values[0, 1] = 0, 1
    return values


def _decoded(data: bytes) -> Image.Image:
    return to_upright_srgb(decode(data, Limits()).image)


def _off(image: Image.Image, wanted: Array) -> int:
    shown = np.asarray(image).astype(np.int16).reshape(HEIGHT, WIDTH, -1)
    return int(np.abs(shown - np.asarray(wanted).astype(np.int16)).max())


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("count", [1, 3])
def test_floats_between_0_and_1(count: int, bits: int, big_endian: bool, separate: bool, tiled: bool) -> None:
    """Half, single and double precision, in strips and tiles, interleaved and planar, in both byte orders."""
    samples = _ramp(count).astype(f"f{bits // 8}")
    data = _file(
        samples, bits, RGB if count == 3 else BLACK_IS_ZERO,
        kind=3, tiled=tiled, separate=separate, big_endian=big_endian,
    )  # fmt: skip
    assert _off(_decoded(data), np.round(samples.astype(float) * 255)) <= 1


@pytest.mark.parametrize("predictor", [1, 3])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_compressed_floats_with_and_without_their_predictor(compression: str, tiled: bool, predictor: int) -> None:
    """Whatever the compression, in segments of their own."""
    samples = _ramp(3).astype("f4")
    data = _file(samples, 32, RGB, kind=3, compression=compression, tiled=tiled, predictor=predictor)
    assert _off(_decoded(data), np.round(samples * 255)) <= 1


def test_floats_beyond_0_to_1_are_stretched_and_those_that_are_no_number_are_0() -> None:
    """As for grey floats: the range in use becomes black to white."""
    samples = (_ramp(3) * 30 - 10).astype("f4")
    wanted = np.round(_ramp(3) * 255)
    samples[4, 4], wanted[4, 4] = np.nan, 85
    assert _off(_decoded(_file(samples, 32, RGB, kind=3)), wanted) <= 1


@pytest.mark.parametrize("extra", [1, 2])
def test_floats_with_alpha(extra: int) -> None:
    """The fourth sample is alpha, and the colours may be multiplied by it."""
    colours, alpha = _ramp(3), np.full((HEIGHT, WIDTH, 1), 0.5)
    stored = np.concatenate([colours * (alpha if extra == 1 else 1), alpha], axis=-1).astype("f4")
    image = _decoded(_file(stored, 32, RGB, kind=3, extra=(extra,)))
    assert image.mode == "RGBA"
    assert _off(image, np.round(np.concatenate([colours, alpha], axis=-1) * 255)) <= 2


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("separate", [False, True])
@pytest.mark.parametrize("compression", ["none", "deflate", "lzma"])
@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("photometric", [WHITE_IS_ZERO, BLACK_IS_ZERO, RGB])
def test_depths_between_8_and_16_bits(
    photometric: int, bits: int, compression: str, separate: bool, tiled: bool
) -> None:
    """Packed samples are scaled by their own depth."""
    most = (1 << bits) - 1
    samples = np.round(_ramp(3 if photometric == RGB else 1) * most).astype(np.uint32)
    data = _file(samples, bits, photometric, compression=compression, separate=separate, tiled=tiled)
    wanted = np.round(samples * 255 / most)
    assert _off(_decoded(data), 255 - wanted if photometric == WHITE_IS_ZERO else wanted) <= 1


@pytest.mark.parametrize("bits", [12, 16, 20, 32])
def test_signed_samples_are_shown_from_their_lowest_value_on(bits: int) -> None:
    """The lowest value is black, the highest white."""
    most = (1 << bits) - 1
    samples = np.round(_ramp(3) * most).astype(np.int64)
    stored = (samples - (1 << bits - 1)) & most
    data = _file(stored.astype("u2" if bits <= 16 else "u4"), bits, RGB, kind=2, separate=True)
    assert _off(_decoded(data), np.round(samples * 255 / most)) <= 1


@pytest.mark.parametrize("predictor", [1, 2])
@pytest.mark.parametrize("bits", [8, 16, 32])
@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("separate", [False, True])
def test_whole_bytes_in_strips_and_tiles_interleaved_and_planar(
    separate: bool, tiled: bool, bits: int, predictor: int
) -> None:
    """RGB of 8, 16 and 32 bits, with and without differences."""
    most = (1 << bits) - 1
    samples = np.round(_ramp(3) * most).astype(f"u{bits // 8}")
    data = _file(samples, bits, RGB, compression="deflate", separate=separate, tiled=tiled, predictor=predictor)
    assert _off(_decoded(data), np.round(samples / most * 255)) <= 1


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("separate", [False, True])
def test_cmyk_of_8_and_16_bits(bits: int, separate: bool) -> None:
    """Without a profile, ink takes light away."""
    most = (1 << bits) - 1
    samples = np.round(_ramp(4) * most).astype(f"u{bits // 8}")
    inks = samples / most
    wanted = np.round((1 - inks[..., :3]) * (1 - inks[..., 3:]) * 255)
    assert _off(_decoded(_file(samples, bits, CMYK, separate=separate)), wanted) <= 2


def test_lab_of_16_bits_is_that_of_8() -> None:
    """L* from 0 to 65535, a* and b* signed."""
    narrow = np.round(_ramp(3) * 255).astype(np.uint8)
    wide = narrow.astype("u2") << 8 | np.array([1, 0, 0], "u2") * narrow
    eight, sixteen = (_decoded(_file(samples, bits, LAB)) for samples, bits in ((narrow, 8), (wide, 16)))
    assert _off(sixteen, np.asarray(eight)) <= 1


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("bits", [8, 16])
def test_lab_is_the_same_in_planes_and_in_tiles(bits: int, tiled: bool) -> None:
    """Only the place of the samples differs."""
    samples = np.round(_ramp(3) * ((1 << bits) - 1)).astype(f"u{bits // 8}")
    plain = np.asarray(_decoded(_file(samples, bits, LAB)))
    assert _off(_decoded(_file(samples, bits, LAB, tiled=tiled, separate=True)), plain) == 0
    assert _off(_decoded(_file(samples, bits, LAB, tiled=tiled)), plain) == 0


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_every_compression_of_8_bits(compression: str) -> None:
    """The compressions themselves are libtiff's."""
    samples = np.round(_ramp(3) * 255).astype(np.uint8)
    assert _off(_decoded(_file(samples, 8, RGB, compression=compression)), samples) == 0


@pytest.mark.parametrize("tiled", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_compressed_segments(mode: str, tiled: bool) -> None:
    """Each strip or tile is a lossless WebP image; one that is cut or of another size is refused."""
    samples = np.round(_ramp(len(mode)) * 255).astype(np.uint8)
    samples[..., 3:] |= 1  # transparent pixels lose their colour
    step = TILE if tiled else 7
    padded = np.pad(samples, ((0, -HEIGHT % step), (0, -WIDTH % TILE if tiled else 0), (0, 0)))
    across = TILE if tiled else WIDTH
    segments = []
    for y in range(0, HEIGHT, step):
        for x in range(0, WIDTH, across):
            out = io.BytesIO()
            Image.fromarray(padded[y : y + step, x : x + across]).save(out, "WEBP", lossless=True, exact=True)
            segments.append(out.getvalue())
    fields: Fields = {BITS: (8,) * len(mode), COMPRESSION: (50001,), PHOTOMETRIC: (RGB,), SAMPLES: (len(mode),)}
    fields |= {TILE_WIDTH: (TILE,), TILE_HEIGHT: (TILE,)} if tiled else {STRIP_ROWS: (7,)}
    assert _off(_decoded(_tiff(fields, segments, tiled=tiled)), samples) == 0
    large = io.BytesIO()
    Image.new(mode, (500, 500)).save(large, "WEBP", lossless=True)
    for bad in (segments[0][:-9], large.getvalue()):
        with pytest.raises(Refusal):
            decode(_tiff(fields, [bad, *segments[1:]], tiled=tiled), Limits())


def test_orientation_is_applied() -> None:
    """The picture comes out upright."""
    samples = _ramp(3).astype("f4")
    turned = _decoded(_file(samples, 32, RGB, kind=3, orientation=6))
    upright = _decoded(_file(samples, 32, RGB, kind=3))
    assert np.array_equal(np.asarray(turned), np.rot90(np.asarray(upright), -1))


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_missing_segments_are_refused(compression: str) -> None:
    """A directory whose last segment is shorter than it should be, or lies beyond the file's end."""
    data = _file(_ramp(3).astype("f4"), 32, RGB, kind=3, compression=compression)
    short = bytearray(data)
    sizes = data.index(struct.pack("<HHI", STRIP_SIZES, 4, 3)) + 8
    at = int.from_bytes(data[sizes : sizes + 4], "little") + 8
    size = int.from_bytes(data[at : at + 4], "little")
    for wrong in (size // 2, 1 << 30):
        short[at : at + 4] = wrong.to_bytes(4, "little")
        with pytest.raises(Refusal) as caught:
            decode(bytes(short), Limits())
        assert caught.value.code in {ErrorCode.TRUNCATED_IMAGE, ErrorCode.CORRUPT_IMAGE}


@pytest.mark.parametrize("kind", [1, 3])
@pytest.mark.parametrize("big_endian", [False, True])
def test_a_cut_directory_is_refused(kind: int, big_endian: bool) -> None:
    """Nowhere is a missing field replaced by its default."""
    samples = _ramp(3).astype("f4") if kind == 3 else np.round(_ramp(3) * 255).astype(np.uint8)
    data = _file(samples, 32 if kind == 3 else 8, RGB, kind=kind, big_endian=big_endian)
    for cut in range(1, 300, 3):
        with pytest.raises(Refusal) as caught:
            decode(data[:-cut], Limits())
        assert caught.value.code == ErrorCode.TRUNCATED_IMAGE


def test_a_cut_field_that_the_pixels_do_not_need_is_ignored() -> None:
    """Metadata that points beyond the file is common."""
    samples = _ramp(3).astype("f4")
    fields: Fields = {BITS: (32,) * 3, COMPRESSION: (1,), PHOTOMETRIC: (RGB,), SAMPLES: (3,), FORMAT: (3,) * 3}
    data = _tiff({**fields, STRIP_ROWS: (HEIGHT,), 65000: (1, 2, 3)}, [samples.tobytes()])
    assert _off(_decoded(data[:-5]), np.round(samples * 255)) <= 1


def _declaring(width: int, height: int) -> bytes:
    fields: Fields = {WIDTH_TAG: (width,), HEIGHT_TAG: (height,), BITS: (64,) * 4, SAMPLES: (4,), FORMAT: (3,) * 4}
    fields |= {COMPRESSION: (8,), PHOTOMETRIC: (RGB,), EXTRA: (2,), STRIP_ROWS: (height,)}
    return _tiff(fields, [zlib.compress(bytes(1000))])


def test_a_large_declared_size_is_refused_before_allocation() -> None:
    """By its pixels as in every format, and by the memory that wide samples need."""
    with pytest.raises(Refusal) as caught:
        decode(_declaring(20_000, 20_000), Limits())
    assert caught.value.code == ErrorCode.DIMENSIONS_TOO_LARGE
    with pytest.raises(Refusal) as caught:
        decode(_declaring(9_000, 9_000), Limits(max_pixels=1_000_000))
    assert caught.value.code == ErrorCode.TOO_MANY_PIXELS
    with pytest.raises(MemoryError):
        decode(_declaring(9_000, 9_000), Limits())
