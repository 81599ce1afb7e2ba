from __future__ import annotations

import base64
import io
import math
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageCms

from agents.core.decode import Limits
from agents.core.fingerprint import fingerprint, perceptual_hash, thumbhash
from agents.core.sanitize import PNG_MAX_PIXELS, Sanitized, sanitize

LIMITS = Limits()
REFUSED = {"check.svg", "relax.jp2"}


def _saved(image: Image.Image, kind: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _master(made: Sanitized) -> Image.Image:
    image = Image.open(io.BytesIO(made.master))
    image.load()
    return image


def _pixel(made: Sanitized, x: int = 0, y: int = 0) -> tuple[int, ...]:
    found = _master(made).getpixel((x, y))
    return found if isinstance(found, tuple) else (int(found or 0),)


def _good(images_dir: Path) -> list[Path]:
    folders = ("formats", "exif", "photos", "ocr", "clip_golden")
    paths = (path for folder in folders for path in sorted((images_dir / folder).iterdir()))
    return [path for path in paths if path.suffix != ".txt" and path.name not in REFUSED]


def test_every_good_image_is_accepted_and_loses_all_its_metadata(images_dir: Path) -> None:
    """All real images come out as JPEG or PNG with nothing but pixels; twice the same bytes, one of each type."""
    paths = _good(images_dir)
    assert len(paths) > 40
    repeated = {path.suffix: path for path in paths}.values()
    for path in paths:
        made = sanitize(path.read_bytes(), LIMITS)
        image = _master(made)
        assert image.format in {"JPEG", "PNG"}, path.name
        assert image.mode in {"L", "RGB", "RGBA"}, path.name
        assert image.size == (made.width, made.height), path.name
        assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}, path.name
        assert not image.getexif(), path.name
        for trace in (b"Exif", b"GPS", b"http://ns.adobe.com", b"ICC_PROFILE", b"iCCP", b"tEXt", b"iTXt", b"eXIf"):
            assert trace not in made.master, (path.name, trace)
        if path in repeated:
            assert sanitize(path.read_bytes(), LIMITS).master == made.master, path.name


def test_the_eight_orientations_come_out_alike(images_dir: Path) -> None:
    """Orientation is baked into the pixels: all eight are the same upright picture."""
    made = [sanitize((images_dir / "exif" / f"Landscape_{n}.jpg").read_bytes(), LIMITS) for n in range(1, 9)]
    first, *others = (np.asarray(_master(one), dtype=np.int16) for one in made)
    assert {(one.width, one.height) for one in made} == {(1800, 1200)}
    assert np.abs(first - first[:, ::-1]).mean() > 30  # what one left mirrored would differ by
    assert all(np.abs(first - other).mean() < 5 for other in others)  # the digit on each, and its own JPEG noise


def test_a_mirrored_and_turned_image_of_each_orientation_is_exactly_undone() -> None:
    """For each of the eight values the pixels land where the EXIF standard says."""
    upright = Image.fromarray(np.arange(12, dtype=np.uint8).reshape(3, 4) * 20)
    undo = Image.Transpose
    ways = {2: undo.FLIP_LEFT_RIGHT, 3: undo.ROTATE_180, 4: undo.FLIP_TOP_BOTTOM, 5: undo.TRANSPOSE}
    ways |= {6: undo.ROTATE_90, 7: undo.TRANSVERSE, 8: undo.ROTATE_270}  # the stored image is turned the other way
    for value, way in ways.items():
        exif = Image.Exif()
        exif[0x0112] = value
        data = _saved(upright.transpose(way), "PNG", exif=exif)
        assert np.array_equal(np.asarray(_master(sanitize(data, LIMITS))), np.asarray(upright)), value


def test_broken_exif_means_upright(images_dir: Path) -> None:
    """A photo whose EXIF cannot be read is accepted as it lies."""
    assert sanitize((images_dir / "exif" / "hopper_bad_exif.jpg").read_bytes(), LIMITS).width == 500


def test_bytes_behind_the_image_die() -> None:
    """A polyglot's other half is not in the master."""
    payload = b"PK\x03\x04 <script>alert(1)</script>"
    for kind in ("JPEG", "PNG", "GIF"):
        data = _saved(Image.new("RGB", (9, 9), "red"), kind)
        assert b"script" not in sanitize(data + payload, LIMITS).master
    data = _saved(Image.new("RGB", (9, 9), "red"), "JPEG", comment=payload)
    assert b"script" not in sanitize(data, LIMITS).master


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_not_clipped(kind: str) -> None:
    """Half of full scale stays half of full scale."""
    ramp = np.array([[0, 1000, 32768, 65535]], dtype=np.uint16)
    made = sanitize(_saved(Image.fromarray(ramp), kind), LIMITS)
    assert np.asarray(_master(made)).tolist() == [[0, 4, 128, 255]]


def test_real_sixteen_bit_images_keep_their_colours(images_dir: Path) -> None:
    """The Dutch flag is red, white and blue from top to bottom."""
    made = sanitize((images_dir / "formats" / "Flag_of_the_Netherlands-16bit.png").read_bytes(), LIMITS)
    assert [_pixel(made, 450, y) for y in (100, 300, 500)] == [(174, 28, 40), (255, 255, 255), (33, 70, 139)]


def test_a_wide_gamut_image_is_converted_to_srgb(images_dir: Path) -> None:
    """Display P3 red becomes the reddest red of sRGB, and a ProPhoto colour its sRGB equal."""
    assert _pixel(sanitize((images_dir / "formats" / "p3.png").read_bytes(), LIMITS))[:3] == (255, 0, 0)
    data = (images_dir / "formats" / "prophoto.png").read_bytes()
    raw = Image.open(io.BytesIO(data)).convert("RGB").getpixel((0, 0))
    assert _pixel(sanitize(data, LIMITS)) == (117, 160, 210) != raw


def test_cmyk_with_a_profile_comes_out_in_natural_colours(images_dir: Path) -> None:
    """The CMYK photo goes through its own profile, which differs from the naive conversion."""
    data = (images_dir / "formats" / "Channel_digital_image_CMYK_color.jpg").read_bytes()
    image = Image.open(io.BytesIO(data))
    profile = ImageCms.ImageCmsProfile(io.BytesIO(image.info["icc_profile"]))
    wanted = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode="RGB")
    assert wanted is not None
    master = np.asarray(_master(sanitize(data, LIMITS)), dtype=np.int16)
    assert np.abs(master - np.asarray(wanted, dtype=np.int16)).mean() < 4
    assert np.abs(master - np.asarray(image.convert("RGB"), dtype=np.int16)).mean() > 8


def test_cmyk_without_a_profile_and_a_broken_profile_are_accepted() -> None:
    """No profile, or nonsense in its place, is no reason to refuse an image."""
    made = sanitize(_saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG"), LIMITS)
    assert _pixel(made) >= (250, 0, 0)
    data = _saved(Image.new("RGB", (8, 8), (10, 200, 30)), "PNG", icc_profile=b"nonsense" * 20)
    assert _pixel(sanitize(data, LIMITS)) == (10, 200, 30)


@pytest.mark.parametrize(
    ("mode", "fill", "kind", "wanted"),
    [
        ("1", 1, "PNG", (255,)),
        ("L", 77, "PNG", (77,)),
        ("LA", (77, 128), "PNG", (77, 77, 77, 128)),
        ("RGBA", (1, 2, 3, 128), "PNG", (1, 2, 3, 128)),
        ("RGBA", (1, 2, 3, 255), "PNG", (1, 2, 3)),
        ("RGBA", (1, 2, 3, 128), "TIFF", (1, 2, 3, 128)),
        ("LAB", (255, 128, 128), "TIFF", (255, 255, 255)),
    ],
)
def test_every_mode_finds_its_plain_form(
    mode: str, fill: int | tuple[int, ...], kind: str, wanted: tuple[int, ...]
) -> None:
    """One bit, grey, alpha and Lab come out as grey, RGB or RGBA; alpha that hides nothing is dropped."""
    pixel = _pixel(sanitize(_saved(Image.new(mode, (4, 4), fill), kind), LIMITS))
    assert np.abs(np.subtract(pixel, wanted)).max() <= 2


def test_palette_and_its_transparency_are_kept(images_dir: Path) -> None:
    """A GIF's transparent index becomes alpha, its colours stay."""
    image = Image.new("P", (4, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2, 1])
    master = _master(sanitize(_saved(image, "GIF", transparency=1), LIMITS))
    rgba = np.asarray(master)
    assert rgba[0, :, 3].tolist() == [255, 0, 255, 0]
    assert rgba[0, 0].tolist() == [255, 0, 0, 255]


def test_lossy_sources_become_jpeg_and_others_png(images_dir: Path) -> None:
    """The master's format follows from the source: no lossless image loses detail, no photo grows without need."""
    assert sanitize((images_dir / "photos" / "pets.jpg").read_bytes(), LIMITS).extension == "jpg"
    kodak = (images_dir / "photos" / "kodak_5.png").read_bytes()
    made = sanitize(kodak, LIMITS)
    assert made.extension == "png"
    assert np.array_equal(np.asarray(_master(made)), np.asarray(Image.open(io.BytesIO(kodak))))
    huge = _saved(Image.new("L", (6000, PNG_MAX_PIXELS // 6000 + 1), 9), "PNG")
    assert sanitize(huge, LIMITS).extension == "jpg"


def test_a_jpeg_master_keeps_full_colour_resolution(images_dir: Path) -> None:
    """4:4:4 and quality 95: close to the source in every channel."""
    data = (images_dir / "photos" / "cat_720p.jpg").read_bytes()
    master = _master(sanitize(data, LIMITS))
    assert [layer[1:3] for layer in master.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]
    wanted = np.asarray(Image.open(io.BytesIO(data)), dtype=np.int16)
    assert np.abs(np.asarray(master, dtype=np.int16) - wanted).mean() < 1.5


def test_capture_details_are_kept_only_when_asked_for(images_dir: Path) -> None:
    """Date and camera are private: absent by default, read from EXIF when wanted."""
    data = (images_dir / "exif" / "DSCN0010.jpg").read_bytes()
    without, wanted = sanitize(data, LIMITS), sanitize(data, LIMITS, keep_capture_details=True)
    assert (without.captured_at, without.camera) == (None, None)
    assert (wanted.captured_at, wanted.camera) == ("2008-10-22T16:28:39", "NIKON COOLPIX P6000")


def test_the_perceptual_hash_is_imagehashs(images_dir: Path) -> None:
    """Bit for bit the pHash that others compute, and near for the same picture in another size and quality."""
    for path in sorted((images_dir / "photos").iterdir()):
        image = Image.open(path).convert("RGB")
        assert perceptual_hash(image) == str(imagehash.phash(image)), path.name
        smaller = Image.open(io.BytesIO(_saved(image.resize((image.width // 2, image.height // 2)), "JPEG")))
        near = int(perceptual_hash(image), 16) ^ int(fingerprint(smaller).perceptual_hash, 16)
        assert near.bit_count() <= 6, path.name


def test_the_palette_ranks_colours_by_their_share() -> None:
    """Three quarters red and one quarter blue say so; what is transparent does not count."""
    image = Image.new("RGBA", (40, 40), (200, 0, 0, 255))
    image.paste((0, 0, 200, 255), (0, 0, 40, 10))
    assert fingerprint(image).palette[:2] == (("#C80000", 0.75), ("#0000C8", 0.25))
    image.paste((0, 0, 0, 0), (0, 10, 40, 40))
    assert fingerprint(image).palette == (("#0000C8", 1.0),)
    assert fingerprint(Image.new("RGBA", (5, 5))).palette == (("#FFFFFF", 1.0),)


def test_a_thumbhash_tells_mean_colour_alpha_and_ratio(images_dir: Path) -> None:
    """The reference decoder's reading of the header (thumbHashToAverageRGBA) gives back the image's mean colour."""
    for name, alpha in (("kodak_20.png", False), ("owl.jpg", False), ("../ocr/korean.png", True)):
        rgba = Image.open(images_dir / "photos" / name).convert("RGBA")
        packed = base64.b64decode(thumbhash(rgba))
        head = int.from_bytes(packed[:3], "little")
        light, warm, red = (head & 63) / 63, (head >> 6 & 63) / 31.5 - 1, (head >> 12 & 63) / 31.5 - 1
        blue = light - 2 / 3 * warm
        found = ((3 * light - blue + red) / 2, (3 * light - blue - red) / 2, blue)
        pixels = np.asarray(rgba, dtype=np.float64).reshape(-1, 4) / 255
        mean = np.average(pixels[:, :3], axis=0, weights=pixels[:, 3])
        assert np.abs(np.array(found) - mean).max() < 0.04, name
        assert bool(head >> 23) is alpha, name
        assert bool(packed[4] >> 7) is (rgba.width > rgba.height), name


def test_a_thumbhash_is_the_reference_encoders() -> None:
    """A gradient gives what the formulas of the reference give when written out pixel by pixel."""
    rgba = Image.fromarray(
        np.array([[[x * 20, y * 30, 120, 255 - x * y] for x in range(12)] for y in range(8)], dtype=np.uint8)
    )
    ours, reference = base64.b64decode(thumbhash(rgba)), _reference(rgba)
    assert len(ours) == len(reference)
    assert ours[:6] == reference[:6]
    # From there each half byte is a rounded coefficient; sums in another order may fall on the other side of a tie.
    for mine, theirs in zip(ours[6:], reference[6:], strict=True):
        assert abs((mine >> 4) - (theirs >> 4)) <= 1
        assert abs((mine & 15) - (theirs & 15)) <= 1


def _reference(rgba: Image.Image) -> bytes:
    """evanw/thumbhash, js/thumbhash.js, rgbaToThumbHash: loop by loop."""
    w, h = rgba.size
    pixels = [tuple(int(v) for v in p) for p in np.asarray(rgba).reshape(-1, 4)]
    total = sum(p[3] / 255 for p in pixels)
    mean = [sum(p[3] / 255 / 255 * p[c] for p in pixels) / total for c in range(3)]
    has_alpha = total < w * h
    limit = 5 if has_alpha else 7
    lx, ly = (max(1, math.floor(limit * side / max(w, h) + 0.5)) for side in (w, h))
    planes: list[list[float]] = [[], [], [], []]
    for p in pixels:
        a = p[3] / 255
        red, green, blue = (mean[c] * (1 - a) + a / 255 * p[c] for c in range(3))
        for plane, value in zip(
            planes, ((red + green + blue) / 3, (red + green) / 2 - blue, red - green, a), strict=True
        ):
            plane.append(value)

    def encode(channel: list[float], nx: int, ny: int) -> tuple[float, list[float], float]:
        dc, ac, scale = 0.0, [], 0.0
        for cy in range(ny):
            cx = 0
            while cx * ny < nx * (ny - cy):
                f = sum(
                    channel[x + y * w] * math.cos(math.pi / w * cx * (x + 0.5)) * math.cos(math.pi / h * cy * (y + 0.5))
                    for y in range(h)
                    for x in range(w)
                ) / (w * h)
                if cx or cy:
                    ac.append(f)
                    scale = max(scale, abs(f))
                else:
                    dc = f
                cx += 1
        return dc, [0.5 + 0.5 / scale * f for f in ac] if scale else ac, scale

    def r(value: float) -> int:
        return math.floor(value + 0.5)

    l, p_, q, a_ = (  # noqa: E741
        encode(plane, nx, ny)
        for plane, (nx, ny) in zip(planes, ((max(3, lx), max(3, ly)), (3, 3), (3, 3), (5, 5)), strict=True)
    )
    head = r(63 * l[0]) | r(31.5 + 31.5 * p_[0]) << 6 | r(31.5 + 31.5 * q[0]) << 12 | r(31 * l[2]) << 18
    head |= int(has_alpha) << 23
    rest = (ly if w > h else lx) | r(63 * p_[2]) << 3 | r(63 * q[2]) << 9 | int(w > h) << 15
    packed = [head & 255, head >> 8 & 255, head >> 16, rest & 255, rest >> 8]
    start = 6 if has_alpha else 5
    if has_alpha:
        packed.append(r(15 * a_[0]) | r(15 * a_[2]) << 4)
    index = 0
    for channel in (l, p_, q, a_) if has_alpha else (l, p_, q):
        for f in channel[1]:
            at = start + (index >> 1)
            packed += [0] * (at + 1 - len(packed))
            packed[at] |= r(15 * f) << ((index & 1) << 2)
            index += 1
    return bytes(packed)
