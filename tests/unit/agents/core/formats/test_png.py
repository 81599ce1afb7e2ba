from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from agents.core.colour import to_upright_srgb
from agents.core.decode import Limits, Refusal, decode
from schemas.values import ErrorCode

WIDTH, HEIGHT = 16, 12
GREY, RGB, PALETTE = 0, 2, 3
Samples = npt.NDArray[np.int64]


def _chunk(kind: bytes, body: bytes, *, damage: int = 0) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body) ^ damage)


def _png(samples: Samples, depth: int, colour_type: int, before: bytes = b"", after: bytes = b"") -> bytes:
    bits = np.unpackbits(samples.astype(">u2")[..., None].view(np.uint8), axis=-1)[..., 16 - depth :]
    lines = np.packbits(bits.reshape(len(samples), -1), axis=-1)
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", samples.shape[1], len(samples), depth, colour_type, 0, 0, 0))
    pixels = _chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line.tobytes() for line in lines)))
    return b"\x89PNG\r\n\x1a\n" + header + before + pixels + after + _chunk(b"IEND", b"")


def _grey(depth: int) -> Samples:
    return np.arange(WIDTH * HEIGHT).reshape(HEIGHT, WIDTH) * 37 % (1 << depth)


def _coloured(depth: int) -> Samples:
    return np.arange(WIDTH * HEIGHT * 3).reshape(HEIGHT, WIDTH, 3) * 41 % (1 << depth)


def _shown(data: bytes) -> npt.NDArray[np.uint8]:
    return np.asarray(to_upright_srgb(decode(data, Limits()).image).convert("RGBA"))


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
@pytest.mark.parametrize("place", [0, 1, 7])
def test_one_grey_value_is_transparent_at_each_depth(depth: int, place: int) -> None:
    """Pixels of the value in tRNS are transparent, all others opaque, whatever the bit depth."""
    samples = _grey(depth)
    key = int(samples[3, place])
    shown = _shown(_png(samples, depth, GREY, _chunk(b"tRNS", struct.pack(">H", key))))
    assert np.array_equal(shown[..., 3], np.where(samples == key, 0, 255))
    assert np.abs(shown[..., 0] - samples * 255 / ((1 << depth) - 1)).max() <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_one_colour_is_transparent_at_each_depth(depth: int) -> None:
    """All bits of all three samples are compared: a colour that differs in the lowest bit stays opaque."""
    samples = _coloured(depth)
    samples[5, 5] = samples[2, 3] = (200, 100, 50)
    samples[5, 6] = (200, 100, 51)
    shown = _shown(_png(samples, depth, RGB, _chunk(b"tRNS", struct.pack(">3H", 200, 100, 50))))
    assert np.array_equal(shown[..., 3], np.where((samples == (200, 100, 50)).all(axis=-1), 0, 255))


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palette_entries_have_the_alpha_of_trns_at_each_depth(depth: int) -> None:
    """The entries that tRNS names have its alpha, the others are opaque."""
    samples = _grey(depth)
    entries = np.full((1 << depth, 4), 255, np.uint8)
    entries[:, :3] = np.arange(3 << depth).reshape(-1, 3) * 67 % 256
    entries[0, 3], entries[1 : 1 << depth - 1, 3] = 30, 140
    alphas = entries[: max(1 << depth - 1, 1), 3].tobytes()
    shown = _shown(_png(samples, depth, PALETTE, _chunk(b"PLTE", entries[:, :3].tobytes()) + _chunk(b"tRNS", alphas)))
    assert np.array_equal(shown, entries[samples])


@pytest.mark.parametrize(
    "kind", [b"tEXt", b"zTXt", b"iTXt", b"gAMA", b"cHRM", b"pHYs", b"tIME", b"eXIf", b"iCCP", b"zzZz"]
)
@pytest.mark.parametrize("behind", [False, True])
def test_an_ancillary_chunk_with_a_wrong_checksum_is_skipped(kind: bytes, behind: bool) -> None:
    """Whatever the ancillary chunk and wherever it lies, the pixels are those of the file without it."""
    samples, bad = _coloured(8), _chunk(kind, b"some\0\0bytes", damage=1)
    data = _png(samples, 8, RGB, after=bad) if behind else _png(samples, 8, RGB, before=bad)
    assert np.array_equal(_shown(data)[..., :3], samples)


def test_transparency_with_a_wrong_checksum_or_length_is_skipped() -> None:
    """A damaged tRNS chunk leaves the image opaque, as in libpng."""
    samples = _grey(8)
    key = struct.pack(">H", int(samples[0, 0]))
    for chunk in (_chunk(b"tRNS", key, damage=1), _chunk(b"tRNS", key[:1]), _chunk(b"tRNS", key * 3)):
        assert (_shown(_png(samples, 8, GREY, chunk))[..., 3] == 255).all()


def test_a_damaged_animation_leaves_a_still_image() -> None:
    """With a damaged animation chunk the image without its animation remains."""
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in (10, 200)]
    out = io.BytesIO()
    frames[0].save(out, "PNG", save_all=True, append_images=frames[1:])
    data = out.getvalue()
    at = data.index(b"fcTL") + 30
    decoded = decode(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :], Limits())
    assert (decoded.frames, decoded.image.getpixel((0, 0))) == (1, (10, 0, 0))


def _text(size: int) -> bytes:
    return (b'{"nodes": [{"id": 1, "type": "sampler", "steps": 20}]}' * (size // 54 + 1))[:size]


@pytest.mark.parametrize(
    ("kind", "head"), [(b"zTXt", b"workflow\0\0"), (b"iTXt", b"workflow\0\1\0en\0Ablauf\0"), (b"iCCP", b"profile\0\0")]
)
@pytest.mark.parametrize("size", [1_100_000, 3_000_000])
def test_texts_and_profiles_of_more_than_a_megabyte_are_skipped(kind: bytes, head: bytes, size: int) -> None:
    """A large compressed chunk does not keep an image from being decoded."""
    samples, chunk = _coloured(8), _chunk(kind, head + zlib.compress(_text(size)))
    assert np.array_equal(_shown(_png(samples, 8, RGB, chunk))[..., :3], samples)
    assert np.array_equal(_shown(_png(samples, 8, RGB, after=chunk))[..., :3], samples)


@pytest.mark.parametrize(
    ("kind", "head"), [(b"zTXt", b"zeros\0\0"), (b"iTXt", b"zeros\0\1\0\0\0"), (b"iCCP", b"zeros\0\0")]
)
def test_a_decompression_bomb_in_a_text_or_profile_is_refused(kind: bytes, head: bytes) -> None:
    """A chunk that expands as far as deflate can is refused, after a megabyte of it."""
    data = _png(_coloured(8), 8, RGB, _chunk(kind, head + zlib.compress(bytes(2_000_000), 9)))
    with pytest.raises(Refusal) as caught:
        decode(data, Limits())
    assert caught.value.code == ErrorCode.CORRUPT_IMAGE


@pytest.mark.parametrize("kind", [b"IHDR", b"PLTE"])
def test_a_critical_chunk_with_a_wrong_checksum_is_refused(kind: bytes) -> None:
    """What is needed for the pixels must be whole."""
    data = bytearray(_png(_grey(8), 8, PALETTE, _chunk(b"PLTE", bytes(768))))
    at = data.index(kind)
    length = int.from_bytes(data[at - 4 : at], "big")
    data[at + 4 + length] ^= 1  # the checksum's first byte
    with pytest.raises(Refusal):
        decode(bytes(data), Limits())
