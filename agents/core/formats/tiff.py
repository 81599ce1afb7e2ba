"""TIFF that Pillow reads not or wrongly: floats, unusual bit depths, wide planes, and WebP-compressed segments.

TIFF 6.0, sections 4 to 8, 14, 15, 18 and 23; Adobe Photoshop TIFF Technical Note 3 (floats); tag 50001 of libtiff
(WebP). libtiff, through Pillow, decompresses: it is given the same segments as an image of bytes.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice

from PIL import Image, TiffImagePlugin

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _ORIENTATION, _SAMPLES, _STRIP_ROWS, _STRIP_SIZES, _PLANAR, _PREDICTOR = 273, 274, 277, 278, 279, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_SIZES, _EXTRA, _FORMAT, _ICC = 322, 323, 324, 325, 338, 339, 34675

_SUBFILE = 254
_NEEDED = {*range(_WIDTH, _PHOTOMETRIC + 1), _FILL_ORDER, _STRIPS, *range(_SAMPLES, _STRIP_SIZES + 1), _PLANAR}
_NEEDED |= {_PREDICTOR, 320, *range(_TILE_WIDTH, _TILE_SIZES + 1), _EXTRA, _FORMAT}  # 320: the colour map
_TYPE_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_BIG = {b"+\0", b"\0+"}  # BigTIFF, in either byte order

NO_COMPRESSION, WEBP = 1, 50001
_BYTEWISE = {NO_COMPRESSION, 5, 8, 32773, 32946, 34925, 50000}  # LZW, deflate, PackBits, deflate, LZMA, Zstandard
_RGB, _CMYK, _LAB = 2, 5, 8
COLOURS = {0: 1, 1: 1, _RGB: 3, _CMYK: 4, _LAB: 3}  # samples by photometric interpretation; 0 and 1 are grey
FLOAT = 3
_RAW_MAX = 600_000_000  # bytes of decompressed samples: 100 megapixels of three 16-bit samples


@dataclass(frozen=True, slots=True)
class Layout:
    """Where the samples of a page lie, and how many pages there are."""

    width: int  # pixels
    height: int
    bits: int  # per sample
    samples: int  # per pixel
    kind: int  # 1 unsigned, 2 signed, 3 float
    photometric: int
    compression: int
    predictor: int
    separate: bool  # a plane for each sample
    extra: int  # meaning of the sample behind the colours: 1 premultiplied alpha, 2 alpha, 0 none
    little_endian: bool
    fill_order: int
    segment_width: int  # pixels; the image's width unless it is tiled
    segment_height: int
    tiled: bool
    segments: tuple[tuple[int, int], ...]  # offset and bytes
    orientation: int
    icc: bytes | None
    pages: int

    @property
    def in_plane(self) -> int:
        """Samples of a pixel that lie together."""
        return 1 if self.separate else self.samples

    @property
    def across(self) -> int:
        """Segments side by side."""
        return -(-self.width // self.segment_width)

    @property
    def down(self) -> int:
        """Segments one below the other."""
        return -(-self.height // self.segment_height)

    @property
    def segment_row(self) -> int:
        """Bytes of a row of a segment."""
        return (self.segment_width * self.in_plane * self.bits + 7) // 8


def read_layout(data: bytes, max_pages: int, page: int = 1) -> Layout | None:
    """Return the layout of a page of a TIFF that Pillow does not read as it should, None of any other.

    Also None if it is damaged. Raises EOFError if the page's directory is cut.
    """
    try:
        _require_directory(data)
        directories = _directories(data, max_pages)
        at, directory = next(islice(directories, page - 1, None))
        _require_directory(data, at)
        layout = _layout(directory)
        if layout is None or not _is_readable(layout) or not _is_unusual(layout):
            return None
        return replace(layout, pages=page + sum(1 for _ in directories))
    except (EOFError, MemoryError):
        raise
    except Exception:  # whatever is wrong with it, Pillow's reader reports it
        return None


def is_page(data: bytes, number: int) -> bool:
    """Return whether an image of a TIFF, counted from 1, is a page: neither a preview of one nor a mask."""
    _, directory = next(islice(_directories(data, number), number - 1, None))
    return not int(directory.get(_SUBFILE, 0)) & 0b101


def planes(data: bytes, layout: Layout) -> Iterator[Image.Image]:
    """Yield each plane's decompressed bytes as an image of mode L, its rows padded to whole segments.

    Raises EOFError if segments are missing, OSError if they are damaged, MemoryError beyond 600 MB.
    """
    count = layout.across * layout.down
    number = layout.samples if layout.separate else 1
    row, rows = layout.across * layout.segment_row, layout.down * layout.segment_height
    if row * rows * number > _RAW_MAX:
        raise MemoryError("the samples need too much memory")
    if len(layout.segments) < count * number or any(sum(segment) > len(data) for segment in layout.segments):
        raise EOFError("truncated")
    stored = sum(size for _, size in layout.segments[: count * number])
    if layout.compression == NO_COMPRESSION and stored < row * number * (rows if layout.tiled else layout.height):
        raise EOFError("truncated")
    for first in range(0, count * number, count):
        yield _bytewise(data, layout, layout.segments[first : first + count])


def _require_directory(data: bytes, at: int | None = None) -> None:
    """Raise EOFError if the file ends before a directory (the first one) or a value in it that the pixels depend on.

    Pillow would go on with defaults.
    """
    order = "<" if data[:1] == b"I" else ">"
    is_big = data[2:4] in _BIG
    place, count, entry = ("Q", "Q", 20) if is_big else ("I", "H", 12)
    if at is None:
        (at,) = struct.unpack_from(order + place, data, 8 if is_big else 4)
    first = at + struct.calcsize(order + count)
    if first > len(data):
        raise EOFError("truncated")
    (entries,) = struct.unpack_from(order + count, data, at)
    if first + entries * entry > len(data):
        raise EOFError("truncated")
    for at in range(first, first + entries * entry, entry):
        tag, kind, values = struct.unpack_from(order + "HH" + place, data, at)
        size = _TYPE_SIZES.get(kind, 0) * values
        if tag in _NEEDED and size > struct.calcsize(place):
            (start,) = struct.unpack_from(order + place, data, at + entry - struct.calcsize(order + place))
            if start + size > len(data):
                raise EOFError("truncated")


def _directories(data: bytes, most: int) -> Iterator[tuple[int, TiffImagePlugin.ImageFileDirectory_v2]]:
    """Yield each page's directory with its position."""
    file = io.BytesIO(data)
    header = file.read(16 if data[2:4] in _BIG else 8)
    directory = TiffImagePlugin.ImageFileDirectory_v2(header)
    seen: set[int] = set()
    while directory.next and directory.next not in seen and len(seen) <= most:
        at = directory.next
        seen.add(at)
        file.seek(at)
        directory = TiffImagePlugin.ImageFileDirectory_v2(header)
        directory.load(file)
        yield at, directory


def _layout(page: TiffImagePlugin.ImageFileDirectory_v2) -> Layout | None:
    samples = int(page.get(_SAMPLES, 1))
    bits, kinds = set(page.get(_BITS, (1,))), set(page.get(_FORMAT, (1,)))
    tiled = _TILES in page
    if len(bits) > 1 or len(kinds) > 1:
        return None
    photometric = int(page.get(_PHOTOMETRIC, -1))
    behind = samples - COLOURS.get(photometric, samples)
    extra = (page.get(_EXTRA) or ((2,) if photometric == _RGB and behind == 1 else (0,)))[0] if behind > 0 else 0
    height = int(page[_HEIGHT])
    offsets, sizes = (page[_TILES], page[_TILE_SIZES]) if tiled else (page[_STRIPS], page[_STRIP_SIZES])
    return Layout(
        width=int(page[_WIDTH]),
        height=height,
        bits=int(bits.pop()),
        samples=samples,
        kind=int(kinds.pop()),
        photometric=photometric,
        compression=int(page.get(_COMPRESSION, 1)),
        predictor=int(page.get(_PREDICTOR, 1)),
        separate=int(page.get(_PLANAR, 1)) == 2 and samples > 1,
        extra=int(extra),
        little_endian=page._endian == "<",
        fill_order=int(page.get(_FILL_ORDER, 1)),
        segment_width=int(page[_TILE_WIDTH] if tiled else page[_WIDTH]),
        segment_height=int(page[_TILE_HEIGHT] if tiled else min(page.get(_STRIP_ROWS, height), height)),
        tiled=tiled,
        segments=tuple(zip(map(int, offsets), map(int, sizes), strict=True)),
        orientation=int(page.get(_ORIENTATION, 1)),
        icc=page.get(_ICC),
        pages=1,
    )


def _is_readable(layout: Layout) -> bool:
    """Return whether tiff_samples reads such a layout."""
    colours = COLOURS.get(layout.photometric)
    if colours is None or not colours <= layout.samples <= 8 or min(layout.segment_width, layout.segment_height) < 1:
        return False
    if layout.compression == WEBP:
        return layout.bits == 8 and not layout.separate and layout.samples in {3, 4}
    if layout.kind == FLOAT:
        return layout.compression in _BYTEWISE and layout.bits in {16, 32, 64} and layout.photometric != _LAB
    return layout.compression in _BYTEWISE and layout.kind in {1, 2} and layout.bits <= 32


def _is_unusual(layout: Layout) -> bool:
    """Return whether Pillow does not read such a layout, or not rightly."""
    if layout.compression == WEBP or layout.kind == FLOAT:
        return True
    if layout.bits == 8:
        is_lab = layout.photometric == _LAB
        return (layout.separate and (is_lab or layout.photometric == _CMYK)) or (is_lab and layout.samples > 3)
    if layout.bits in {16, 32}:
        interleaved_rgb = layout.photometric == _RGB and layout.bits == 16 and not layout.separate
        return layout.samples > 1 and not interleaved_rgb
    return layout.bits not in {1, 2, 4} and layout.predictor == 1


def _bytewise(data: bytes, layout: Layout, segments: tuple[tuple[int, int], ...]) -> Image.Image:
    """Return a plane's bytes: the file with a directory that describes the segments as 8-bit grey."""
    rows = layout.down * layout.segment_height if layout.tiled else layout.height
    offsets, sizes = (tuple(column) for column in zip(*segments, strict=True))
    fields: dict[int, tuple[int, ...]] = {
        _WIDTH: (layout.across * layout.segment_row,), _HEIGHT: (rows,), _BITS: (8,), _SAMPLES: (1,),
        _COMPRESSION: (layout.compression,), _PHOTOMETRIC: (1,), _FILL_ORDER: (layout.fill_order,),
    }  # fmt: skip
    if layout.tiled:
        fields |= {_TILE_WIDTH: (layout.segment_row,), _TILE_HEIGHT: (layout.segment_height,)}
        fields |= {_TILES: offsets, _TILE_SIZES: sizes}
    else:
        fields |= {_STRIP_ROWS: (layout.segment_height,), _STRIPS: offsets, _STRIP_SIZES: sizes}
    at = len(data) + len(data) % 2
    made = b"II*\0" + at.to_bytes(4, "little") + data[8:].ljust(at - 8, b"\0") + _directory(fields, at)
    image = Image.open(io.BytesIO(made), formats=("TIFF",))
    image.load()
    return image


def _directory(fields: dict[int, tuple[int, ...]], at: int) -> bytes:
    """Return a little-endian directory of unsigned 32-bit fields that lies at that position."""
    entries, values = struct.pack("<H", len(fields)), b""
    after = at + 2 + 12 * len(fields) + 4
    for tag, numbers in sorted(fields.items()):
        packed = struct.pack(f"<{len(numbers)}I", *numbers)
        entries += struct.pack("<HHI", tag, 4, len(numbers))
        entries += packed if len(numbers) == 1 else struct.pack("<I", after + len(values))
        values += packed if len(numbers) > 1 else b""
    return entries + bytes(4) + values
