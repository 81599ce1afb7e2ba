"""PNG as browsers read it: damaged or oversized ancillary chunks are skipped, and tRNS applies at every bit depth.

PNG: ISO/IEC 15948, sections 5.3 (chunks), 11.3.2.1 (tRNS) and 13.1 (error handling). What is skipped, and that only the
low bits of a transparent sample count, is as in libpng.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

_SIGNATURE = 8
_ANIMATION = {b"acTL", b"fcTL", b"fdAT"}
_USED = {b"tRNS", b"iCCP", b"eXIf", *_ANIMATION}  # all other ancillary chunks describe the image or its file
_KEY_BYTES = {0: 2, 2: 6}  # length of tRNS by colour type: grey, RGB
_ICC_MAX = 1_000_000  # bytes of a decompressed profile; Pillow's limit is 1 MiB
_INSPECTED_MAX = 64_000_000  # bytes decompressed to find bombs, over all chunks of a file
_EXPANSION_MAX = 1000  # deflate reaches 1032 with a run of one byte; the most repetitive texts stay below 400
_BAND = 256  # rows compared at a time


def essential_chunks(data: bytes) -> bytes:
    """Return the PNG without the ancillary chunks that are damaged, too large, or of no use for its pixels.

    From a broken chunk structure on, the data is unchanged, for the decoder to refuse. Raises ValueError for a chunk
    that is a decompression bomb.
    """
    chunks, end = _chunks(data)
    broken = any(kind in _ANIMATION and not _intact(data, start, stop) for kind, start, stop in chunks)
    skipped = _ANIMATION if broken else frozenset[bytes]()  # without its animation it is a still image
    view, inspected = memoryview(data), 0
    kept = [view[:_SIGNATURE]]
    for kind, start, stop in chunks:
        if kind in {b"zTXt", b"iTXt", b"iCCP"} and inspected < _INSPECTED_MAX:
            size = _inflated_size(kind, view[start + 8 : stop - 4])
            inspected += size
            if kind == b"iCCP" and size > _ICC_MAX:
                continue
        ancillary = kind[0] & 0x20
        if not ancillary or (kind in _USED and kind not in skipped and _usable(data, kind, start, stop)):
            kept.append(view[start:stop])
    return b"".join([*kept, view[end:]])


def apply_transparency(image: Image.Image, data: bytes) -> None:
    """Bring the transparent value of a loaded PNG to the scale of its pixels, in place.

    Pillow leaves the value of grey below 8 bits unscaled, and compares 8 of the 16 bits of an RGB sample.
    """
    key = image.info.get("transparency")
    depth = data[24]
    if isinstance(key, int) and image.mode in {"1", "L"}:
        most = (1 << depth) - 1
        value = int(key > 0) if image.mode == "1" else key & most  # Pillow has 255 for 1
        image.info["transparency"] = value * 255 // most
    elif isinstance(key, tuple) and depth == 8:
        image.info["transparency"] = tuple(value & 255 for value in key)
    elif isinstance(key, tuple):
        alpha = _alpha_of_16_bits(image, data, key)
        del image.info["transparency"]
        image.putalpha(alpha)


def _chunks(data: bytes) -> tuple[list[tuple[bytes, int, int]], int]:
    """Return the chunks up to IEND (kind, start, end), and the position after the last complete one."""
    found = list(_walk(data))
    return found, found[-1][2] if found else _SIGNATURE


def _walk(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    at = _SIGNATURE
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        stop = at + 12 + length
        if stop > len(data) or not kind.isalpha():
            return
        yield kind, at, stop
        if kind == b"IEND":
            return
        at = stop


def _intact(data: bytes, start: int, stop: int) -> bool:
    return zlib.crc32(memoryview(data)[start + 4 : stop - 4]) == int.from_bytes(data[stop - 4 : stop], "big")


def _usable(data: bytes, kind: bytes, start: int, stop: int) -> bool:
    """Return whether a chunk's checksum is right, and, for tRNS, its length."""
    if kind == b"tRNS":
        colour_type, length = data[25], stop - start - 12
        if colour_type not in {0, 2, 3} or length != _KEY_BYTES.get(colour_type, length):
            return False
    return _intact(data, start, stop)


def _inflated_size(kind: bytes, body: memoryview) -> int:
    """Return the decompressed size of a chunk's text or profile, or a value above _ICC_MAX. Raises ValueError."""
    start = bytes(body[:80]).find(b"\0") + 1  # behind the keyword, of 79 bytes at most
    if kind == b"iTXt":
        head = bytes(body[: start + 1000])
        if head[start : start + 2] != b"\1\0":
            return 0  # not compressed
        start = head.find(b"\0", head.find(b"\0", start + 2) + 1)  # behind language and translated keyword
    inflater = zlib.decompressobj()
    compressed = body[start + 1 :]
    try:
        size = len(inflater.decompress(compressed, _ICC_MAX + 1))
    except zlib.error:
        return 0
    if size > _ICC_MAX and size > _EXPANSION_MAX * (len(compressed) - len(inflater.unconsumed_tail)):
        raise ValueError("a compressed chunk is a decompression bomb")
    return size


def _alpha_of_16_bits(image: Image.Image, data: bytes, key: tuple[int, ...]) -> Image.Image:
    """Return 0 where all 16 bits of all three samples are the key's, else 255.

    `image` holds the high bytes; reading the same samples as little-endian gives the low bytes.
    """
    low = Image.open(io.BytesIO(data), formats=("PNG",))
    low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
    low.load()
    alpha = Image.new("L", image.size, 255)
    for top in range(0, image.height, _BAND):
        box = (0, top, image.width, min(top + _BAND, image.height))
        same = (_band(image, box) == [value >> 8 for value in key]) & (
            _band(low, box) == [value & 255 for value in key]
        )
        alpha.paste(Image.fromarray(np.where(same.all(axis=-1), 0, 255).astype(np.uint8)), box[:2])
    return alpha


def _band(image: Image.Image, box: tuple[int, int, int, int]) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return np.asarray(image.crop(box), dtype=np.uint8)
