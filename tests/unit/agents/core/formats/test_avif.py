from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from agents.core.colour import to_upright_srgb
from agents.core.decode import Limits, Refusal, decode, sniff

Pixels = npt.NDArray[np.uint8]
Item = tuple[bytes, bytes, list[bytes]]  # type, data, properties
Links = list[tuple[bytes, int, list[int]]]  # kind, from item, to items; the first item has number 1


def _box(kind: bytes, *parts: bytes, full: int | None = None) -> bytes:
    body = (b"" if full is None else struct.pack(">I", full)) + b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


ALPHA = _box(b"auxC", b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha\0", full=0)
SRGB = _box(b"colr", b"nclx", struct.pack(">HHHB", 1, 13, 6, 0x80))


def _size(width: int, height: int) -> bytes:
    return _box(b"ispe", struct.pack(">II", width, height), full=0)


def _coded(samples: Pixels, *properties: bytes) -> Item:
    """Return an item of AV1, from Pillow's encoder: RGB as colours, grey as alpha."""
    is_alpha, out = samples.ndim == 2, io.BytesIO()
    sampling = "4:0:0" if is_alpha else "4:4:4"
    Image.fromarray(np.ascontiguousarray(samples)).save(out, "AVIF", quality=100, subsampling=sampling)
    data = out.getvalue()
    at = data.index(b"av1C") - 4
    config = data[at : at + int.from_bytes(data[at : at + 4], "big")]
    depths = _box(b"pixi", b"\1\x08" if is_alpha else b"\3\x08\x08\x08", full=0)
    size = _size(samples.shape[1], samples.shape[0])
    return b"av01", data[data.index(b"mdat") + 4 :], [size, depths, config, ALPHA if is_alpha else SRGB, *properties]


def _container(items: list[Item], links: Links) -> bytes:
    """Return an AVIF that shows its first item."""
    known = list(dict.fromkeys(one for _, _, properties in items for one in properties))
    entries, associations = b"", b""
    for number, (kind, _, properties) in enumerate(items, 1):
        entries += _box(b"infe", struct.pack(">HH4sB", number, 0, kind, 0), full=0x02000000)
        flags = (0x80 if one[4:8] in {b"av1C", b"irot", b"imir"} else 0 for one in properties)
        places = bytes(flag | known.index(one) + 1 for flag, one in zip(flags, properties, strict=True))
        associations += struct.pack(">HB", number, len(places)) + places
    references = [_box(kind, struct.pack(f">HH{len(to)}H", one, len(to), *to)) for kind, one, to in links]

    def head(start: int) -> bytes:
        extents = b""
        for number, (_, data, _) in enumerate(items, 1):
            extents += struct.pack(">HHHII", number, 0, 1, start, len(data))
            start += len(data)
        return _box(b"ftyp", b"avif\0\0\0\0avifmif1miaf") + _box(
            b"meta",
            _box(b"hdlr", bytes(4) + b"pict" + bytes(13), full=0),
            _box(b"pitm", struct.pack(">H", 1), full=0),
            _box(b"iloc", struct.pack(">BBH", 0x44, 0, len(items)), extents, full=0),
            _box(b"iinf", struct.pack(">H", len(items)), entries, full=0),
            _box(b"iref", *references, full=0) if references else b"",
            _box(b"iprp", _box(b"ipco", *known), _box(b"ipma", struct.pack(">I", len(items)), associations, full=0)),
            full=0,
        )

    return head(len(head(0)) + 8) + _box(b"mdat", *(data for _, data, _ in items))


def _blocks(rows: int, columns: int, side: int, *alpha: int) -> Pixels:
    """Return flat blocks of different colours; their alpha goes round the values."""
    index = np.arange(rows * columns).reshape(rows, columns)
    opacity = np.array(alpha or (255,))[index % max(len(alpha), 1)]
    blocks = np.stack([40 + index * 67 % 200, 30 + index * 41 % 210, 220 - index * 29 % 190, opacity], axis=-1)
    return blocks.astype(np.uint8).repeat(side, axis=0).repeat(side, axis=1)


def _off(data: bytes, wanted: Pixels) -> int:
    """Return the largest difference, of colour where something is shown."""
    shown = np.asarray(to_upright_srgb(decode(data, Limits()).image).convert("RGBA")).astype(np.int16)
    assert shown.shape == wanted.shape
    difference = np.abs(shown - wanted)
    difference[..., :3] *= wanted[..., 3:] > 0
    return int(difference.max())


TURNS: dict[str, tuple[bytes, Callable[[Pixels], Pixels]]] = {
    "a quarter": (_box(b"irot", b"\1"), lambda shown: np.rot90(shown, 1)),
    "half": (_box(b"irot", b"\2"), lambda shown: np.rot90(shown, 2)),
    "three quarters": (_box(b"irot", b"\3"), lambda shown: np.rot90(shown, 3)),
    "upside down": (_box(b"imir", b"\0"), lambda shown: shown[::-1]),
    "left to right": (_box(b"imir", b"\1"), lambda shown: shown[:, ::-1]),
}


@pytest.mark.parametrize("turn", TURNS)
@pytest.mark.parametrize("alpha_turns", [True, False])
def test_alpha_turns_with_its_image(turn: str, alpha_turns: bool) -> None:
    """Whether its plane has the property of its own or not, as libavif up to 1.3 wrote it."""
    shown = _blocks(3, 4, 8, 255, 0, 128)
    turning, turned = TURNS[turn]
    colour, alpha = _coded(shown[..., :3], turning), _coded(shown[..., 3], *([turning] if alpha_turns else []))
    assert _off(_container([colour, alpha], [(b"auxl", 2, [1])]), turned(shown)) <= 4


@pytest.mark.parametrize(("rows", "columns", "height", "width"), [(1, 2, 64, 104), (2, 2, 100, 128), (3, 1, 190, 64)])
@pytest.mark.parametrize("has_alpha", [True, False])
def test_a_grid_is_put_together_and_cropped(rows: int, columns: int, height: int, width: int, has_alpha: bool) -> None:
    """Tiles of 64 x 64 in rows, the alpha in a grid of its own."""
    shown = _blocks(rows * 4, columns * 4, 16, *((255, 0, 128) if has_alpha else ()))
    corners = [(y * 64, x * 64) for y in range(rows) for x in range(columns)]
    cells = [shown[y : y + 64, x : x + 64] for y, x in corners]
    layout = struct.pack(">BBBBHH", 0, 0, rows - 1, columns - 1, width, height)
    depths = (_box(b"pixi", b"\3\x08\x08\x08", full=0), _box(b"pixi", b"\1\x08", full=0))
    items: list[Item] = [(b"grid", layout, [_size(width, height), depths[0], SRGB])]
    items += [_coded(cell[..., :3]) for cell in cells]
    links: Links = [(b"dimg", 1, list(range(2, 2 + len(cells))))]
    if has_alpha:
        first = len(items) + 1
        items += [(b"grid", layout, [_size(width, height), depths[1], ALPHA])]
        items += [_coded(cell[..., 3]) for cell in cells]
        links += [(b"dimg", first, list(range(first + 1, first + 1 + len(cells)))), (b"auxl", first, [1])]
    data = _container(items, links)
    assert _off(data, shown[:height, :width]) <= 4
    with pytest.raises(Refusal):
        decode(data[:-40], Limits())


def test_colour_that_was_multiplied_by_alpha_is_divided_by_it() -> None:
    """The reference `prem` says so."""
    shown = _blocks(3, 4, 8, 255, 128, 0)
    colour = np.round(shown[..., :3] * (shown[..., 3:] / 255)).astype(np.uint8)
    data = _container([_coded(colour), _coded(shown[..., 3])], [(b"auxl", 2, [1]), (b"prem", 1, [2])])
    assert _off(data, shown) <= 8


def _avif(**options: object) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((48, 32)).convert("RGB").save(out, "AVIF", **options)
    return out.getvalue()


@pytest.mark.parametrize("brand", [b"MA1B", b"MA1A", b"miaf", b"mif2", b"pymd", b"abcd", b"mif1"])
def test_an_avif_is_decoded_under_any_major_brand(brand: bytes) -> None:
    """`avif` among the compatible brands is enough, as for libavif."""
    data = _avif()
    renamed = data[:8] + brand + data[12:]
    assert sniff(renamed) == "avif"
    assert decode(renamed, Limits()).image.tobytes() == decode(data, Limits()).image.tobytes()


def test_brands_count_wherever_they_lie_in_a_long_list() -> None:
    """A file may list many other brands first."""
    data = _avif()
    size = int.from_bytes(data[:4], "big")
    longer = b"".join(b"b%03d" % number for number in range(200))
    assert (
        sniff((size + len(longer)).to_bytes(4, "big") + data[4:8] + b"pymd" + data[12:16] + longer + data[16:])
        == "avif"
    )


def test_a_cut_avif_under_an_unusual_brand_is_refused() -> None:
    """The brand changes nothing else."""
    data = _avif()
    with pytest.raises(Refusal):
        decode(data[:8] + b"MA1B" + data[12 : len(data) // 2], Limits())


def test_alpha_of_an_avif_is_kept() -> None:
    """Transparency is decoded with the colours."""
    image = Image.new("RGBA", (16, 16), (200, 100, 50, 255))
    image.paste((10, 20, 30, 0), (0, 0, 8, 16))
    out = io.BytesIO()
    image.save(out, "AVIF", quality=100)
    alpha = np.asarray(decode(out.getvalue(), Limits()).image)[..., 3]
    assert (alpha[:, :7] < 5).all() and (alpha[:, 9:] > 250).all()
