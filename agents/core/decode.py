"""Decode untrusted bytes: what they are, whether they are within the limits, and their first frame's pixels.

Runs in a sandboxed child. Everything a header says is checked before anything of that size is allocated.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import pillow_heif
from PIL import AvifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from agents.core.frames import Frames, gif_frames, webp_frames
from schemas.values import ErrorCode

pillow_heif.options.DECODE_THREADS = 1
pillow_heif.options.THUMBNAILS = False
pillow_heif.options.AUX_IMAGES = False
pillow_heif.options.DEPTH_IMAGES = False
pillow_heif.register_heif_opener()
Image.preinit()
Image.MAX_IMAGE_PIXELS = None  # our own limits are stricter, and name what is wrong
# Named so that the imports above are seen to be meant: they register the openers that preinit leaves out.
OPENERS = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_PILLOW_NAMES = {
    "jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "tiff": "TIFF", "webp": "WEBP", "gif": "GIF", "avif": "AVIF",
    "heif": "HEIF",
}  # fmt: skip
_LOSSY = ("jpeg", "avif", "heif")


class Refusal(Exception):
    """The image is bad; `message` is a sentence a person understands."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Limits:
    """What an image may be."""

    max_bytes: int = 50_000_000
    max_side: int = 10_000  # pixels
    max_pixels: int = 100_000_000  # width x height, over all frames
    max_frames: int = 10_000


@dataclass(frozen=True, slots=True)
class Decoded:
    """The first frame, as the decoder gave it: any mode, not yet upright, `info` still full."""

    image: Image.Image
    format: str  # one of the names sniff() returns
    frames: int
    lossy: bool  # the source already lost detail, so its copy may


def sniff(data: bytes) -> str | None:
    """Return the format the first bytes say (jpeg, png, bmp, tiff, webp, gif, avif, heif), None if not one of ours."""
    for magic, name in (
        (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"),
        (b"II*\0", "tiff"), (b"MM\0*", "tiff"), (b"II+\0", "tiff"), (b"MM\0+", "tiff"),
    ):  # fmt: skip
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":  # ISO base media file: the major brand, a version, then compatible brands
        end = min(int.from_bytes(data[:4], "big"), 512)
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
        if any(brand in _AVIF_BRANDS for brand in brands):
            return "avif"
        if any(brand in _HEIF_BRANDS for brand in brands):
            return "heif"
    return None


def decode(data: bytes, limits: Limits) -> Decoded:
    """Return the first frame. Raises Refusal, or MemoryError."""
    if not data:
        raise Refusal(ErrorCode.EMPTY_FILE, "The file is empty.")
    if len(data) > limits.max_bytes:
        raise too_large(len(data), limits.max_bytes)
    found = sniff(data)
    if found is None:
        raise Refusal(
            ErrorCode.UNSUPPORTED_FORMAT,
            "This is not a JPEG, PNG, BMP, TIFF, WebP, GIF, AVIF or HEIC image.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # oddities of metadata that we drop anyway
            frames = _frames(data, found, limits)
            image = _open(data, found)
            _check(Frames(image.width, image.height, frames.count, frames.pixels, frames.lossless), limits)
            # Once, and believed: a second load() of an image whose data stream is broken succeeds silently.
            image.load()
    except (Refusal, MemoryError):
        raise
    except Exception as error:
        raise _refusal(error, found) from error
    return Decoded(image, found, frames.count, found in _LOSSY or (found == "webp" and not frames.lossless))


def too_large(size: int, max_bytes: int) -> Refusal:
    """Return the refusal of a file of that many bytes."""
    message = f"The file has {size / 1e6:.1f} MB; at most {max_bytes / 1e6:g} MB are accepted."
    return Refusal(ErrorCode.FILE_TOO_LARGE, message)


def _open(data: bytes, found: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=(_PILLOW_NAMES[found],))


def _frames(data: bytes, found: str, limits: Limits) -> Frames:
    """Return what the headers say of all frames, having checked it; nothing is decoded for it."""
    if found == "gif":
        frames = gif_frames(data, limits.max_frames)
    elif found == "webp":
        frames = webp_frames(data, limits.max_frames)
    else:
        frames = _walk(_open(data, found), found, limits)
    _check(frames, limits)
    return frames


def _walk(image: Image.Image, found: str, limits: Limits) -> Frames:
    width, height = image.size
    count = 1 if found in {"jpeg", "bmp"} else int(getattr(image, "n_frames", 1)) if found != "tiff" else 0
    if found not in {"tiff", "heif"}:  # frames share one canvas
        return Frames(width, height, count, width * height * count)
    pixels, at = 0, 0
    while at <= limits.max_frames and pixels <= limits.max_pixels:  # pages differ in size
        try:
            image.seek(at)
        except EOFError:
            break
        pixels += image.width * image.height
        at += 1
    return Frames(width, height, max(at, 1), max(pixels, width * height))


def _check(frames: Frames, limits: Limits) -> None:
    side = max(frames.width, frames.height)
    if side > limits.max_side:
        raise Refusal(
            ErrorCode.DIMENSIONS_TOO_LARGE,
            f"The image is {frames.width} x {frames.height} pixels; at most {limits.max_side} a side are accepted.",
        )
    if frames.width < 1 or frames.height < 1:
        raise Refusal(ErrorCode.CORRUPT_IMAGE, "The image says that it has no pixels.")
    if frames.pixels > limits.max_pixels or frames.count > limits.max_frames:
        over = f" over its {frames.count} frames" if frames.count > 1 else ""
        raise Refusal(
            ErrorCode.TOO_MANY_PIXELS,
            f"The image has {frames.pixels / 1e6:.1f} megapixels{over}; at most {limits.max_pixels / 1e6:g} megapixels "
            f"and {limits.max_frames} frames are accepted.",
        )


def _refusal(error: Exception, found: str) -> Refusal:
    said = str(error).lower()
    if "memory" in said or "alloc" in said:  # libraries that ran into the limit, and say so in their own way
        raise MemoryError(said) from error
    name = found.upper() if found != "heif" else "HEIC"
    if isinstance(error, EOFError) or "truncated" in said or "end of file" in said or "eof" in said:
        return Refusal(ErrorCode.TRUNCATED_IMAGE, f"The {name} file ends before the image does; part of it is missing.")
    return Refusal(ErrorCode.CORRUPT_IMAGE, f"The {name} file is damaged and cannot be read.")
