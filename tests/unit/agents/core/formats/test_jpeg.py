from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from agents.core.colour import to_upright_srgb
from agents.core.decode import Limits, Refusal, decode

END = b"\xff\xd9"


def _noise(side: int = 40) -> Image.Image:
    pixels = np.random.default_rng(7).integers(0, 256, (side, side + 9, 3), np.uint8)
    return Image.fromarray(pixels)


def _jpeg(image: Image.Image, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", **options)
    return out.getvalue()


ENCODINGS: dict[str, dict[str, object]] = {
    "baseline": {},
    "optimized": {"optimize": True},
    "progressive": {"progressive": True},
    "subsampled": {"subsampling": "4:2:0", "quality": 40},
    "restarts": {"restart_marker_blocks": 3},
    "restarts by row, progressive": {"restart_marker_rows": 1, "progressive": True},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_without_its_end_marker_has_the_same_pixels(encoding: str, mode: str) -> None:
    """With every scan line there, neither the end marker nor its second byte is needed."""
    data = _jpeg(_noise().convert(mode), **ENCODINGS[encoding])
    assert data.endswith(END)
    whole = decode(data, Limits()).image.tobytes()
    for part in (data[:-2], data[:-1]):
        decoded = decode(part, Limits())
        assert (decoded.image.tobytes(), decoded.lossy) == (whole, True)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("share", [0.5, 0.8, 0.95])
def test_a_jpeg_without_some_of_its_scan_lines_is_refused(encoding: str, share: float) -> None:
    """Wherever the data is cut, lines or their last refinement are missing."""
    data = _jpeg(_noise(), quality=90, **{k: v for k, v in ENCODINGS[encoding].items() if k != "quality"})
    with pytest.raises(Refusal):
        decode(data[: int(len(data) * share)], Limits())


def test_a_jpeg_cut_at_a_restart_marker_is_refused() -> None:
    """What libjpeg fills in behind a restart marker is not taken for the image."""
    data = _jpeg(_noise(), restart_marker_blocks=1)
    at = data.rindex(b"\xff\xd3")
    for cut in (at, at + 1, at + 2):
        with pytest.raises(Refusal):
            decode(data[:cut], Limits())


def test_a_progressive_jpeg_without_its_last_scan_is_refused() -> None:
    """Complete scans are not enough: one that brings the last bits of some coefficients is missing."""
    data = _jpeg(_noise(), progressive=True)
    at = data.rindex(b"\xff\xda")
    tables = data.rindex(b"\xff\xc4", 0, at)
    for cut in (at, tables):
        with pytest.raises(Refusal):
            decode(data[:cut], Limits())


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_jpeg_that_lacks_a_few_bytes_is_refused_or_has_the_same_pixels(encoding: str) -> None:
    """However few are missing, no pixel is made up."""
    blocks = Image.fromarray(np.random.default_rng(3).integers(0, 256, (3, 4, 3), np.uint8)).resize((32, 24), 0)
    data = _jpeg(blocks, **ENCODINGS[encoding])
    whole = decode(data, Limits()).image.tobytes()
    accepted = 0
    for cut in range(3, 40):
        try:
            found = decode(data[:-cut], Limits()).image.tobytes()
        except Refusal:
            continue
        assert found == whole, cut
        accepted += 1
    assert accepted < 10


def test_a_flat_image_whose_data_ends_with_zeros_is_accepted() -> None:
    """Zero bits may be an image's last lines; fewer of them than it needs are not enough."""
    flat = Image.new("L", (512, 512), 255)
    flat.paste(_noise().convert("L"), (0, 0))
    data = _jpeg(flat, optimize=True)
    assert data[:-3].endswith(bytes(16))
    assert decode(data[:-2], Limits()).image.size == flat.size
    with pytest.raises(Refusal):
        decode(data[:-20], Limits())


def _xmp(value: int) -> bytes:
    return f'<rdf:Description tiff:Orientation="{value}"/>'.encode()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_an_orientation_in_xmp_alone_is_not_applied(kind: str) -> None:
    """Browsers take the orientation from EXIF alone, in every format."""
    image, out = Image.new("RGB", (20, 10)), io.BytesIO()
    text = PngImagePlugin.PngInfo()
    text.add_itxt("XML:com.adobe.xmp", _xmp(6).decode())
    options: dict[str, dict[str, object]] = {"TIFF": {"tiffinfo": {700: _xmp(6)}}, "PNG": {"pnginfo": text}}
    image.save(out, kind, **options.get(kind, {"xmp": _xmp(6)}))
    assert _xmp(6) in out.getvalue()
    assert to_upright_srgb(decode(out.getvalue(), Limits()).image).size == (20, 10)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
def test_the_orientation_in_exif_is_applied(kind: str) -> None:
    """In each format that carries EXIF, or has the property itself."""
    image, out, exif = Image.new("RGB", (20, 10)), io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    image.save(out, kind, exif=exif)
    assert to_upright_srgb(decode(out.getvalue(), Limits()).image).size == (10, 20)
