"""Decodes untrusted bytes: format, limits, and the pixels of the first frame or of one page.

Runs in a sandboxed child. Declared sizes are checked before any allocation of that size.
"""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import pillow_heif
from PIL import AvifImagePlugin, GifImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

from agents.core.formats import avif, bmp, gif, jpeg, pdf, png, tiff, tiff_samples
from agents.core.frames import Frames, gif_frames, webp_frames
from schemas.values import ErrorCode

pillow_heif.options.DECODE_THREADS = 1
pillow_heif.options.THUMBNAILS = False
pillow_heif.options.AUX_IMAGES = False
pillow_heif.options.DEPTH_IMAGES = False
pillow_heif.register_heif_opener()
AvifImagePlugin.DEFAULT_MAX_THREADS = 1  # as for HEIF: a child has one core and starts no others
Image.preinit()
Image.MAX_IMAGE_PIXELS = None  # the limits below are stricter, with a code of their own
# Marks the imports as used: they register the openers that preinit omits.
OPENERS = (AvifImagePlugin, TiffImagePlugin, WebPImagePlugin)

_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"hevm", b"hevs", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_PILLOW_NAMES = {
    "jpeg": "JPEG", "png": "PNG", "bmp": "BMP", "tiff": "TIFF", "webp": "WEBP", "gif": "GIF", "avif": "AVIF",
    "heif": "HEIF",
}  # fmt: skip
_LOSSY = ("jpeg", "avif", "heif")
_DOCUMENTS = ("tiff", "pdf")  # formats of pages, each decoded by itself; other formats' frames are an animation's
_ICC = 34675  # tag of a TIFF's colour profile


class Refusal(Exception):
    """The image is refused; `message` is public."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Limits:
    """Upper limits of an image."""

    max_bytes: int = 50_000_000
    max_side: int = 10_000  # pixels
    max_pixels: int = 100_000_000  # width x height, over all frames; of a document, one page
    max_frames: int = 10_000
    pdf_dpi: int = 200  # resolution of a PDF's page, less where it would exceed the limits above


@dataclass(frozen=True, slots=True)
class Decoded:
    """A frame or page as decoded: any mode, not upright, `info` complete."""

    image: Image.Image
    format: str  # one of the names sniff() returns
    frames: int
    lossy: bool  # the source format is lossy, so the master may be

    @property
    def pages(self) -> int:
        """The number of pages of a document, 1 of anything else."""
        return self.frames if self.format in _DOCUMENTS else 1


def sniff(data: bytes) -> str | None:
    """Return the format by its first bytes (jpeg, png, bmp, tiff, webp, gif, avif, heif, pdf), None if unsupported."""
    for magic, name in (
        (b"\xff\xd8\xff", "jpeg"), (b"\x89PNG", "png"), (b"GIF87a", "gif"), (b"GIF89a", "gif"), (b"BM", "bmp"),
        (b"II*\0", "tiff"), (b"MM\0*", "tiff"), (b"II+\0", "tiff"), (b"MM\0+", "tiff"), (b"%PDF-", "pdf"),
    ):  # fmt: skip
        if data.startswith(magic):
            return name
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "webp"
    if data[4:8] == b"ftyp":  # ISO base media file: major brand, version, compatible brands
        end = min(int.from_bytes(data[:4], "big"), 4096, len(data))
        brands = [data[8:12], *(data[at : at + 4] for at in range(16, end, 4))]
        if any(brand in _AVIF_BRANDS for brand in brands):
            return "avif"
        if any(brand in _HEIF_BRANDS for brand in brands):
            return "heif"
    return None


def decode(data: bytes, limits: Limits, page: int = 1) -> Decoded:
    """Return the first frame, or a page of a document, counted from 1. Raises Refusal, or MemoryError."""
    if not data:
        raise Refusal(ErrorCode.EMPTY_FILE, "The file is empty.")
    if len(data) > limits.max_bytes:
        raise too_large(len(data), limits.max_bytes)
    found = sniff(data)
    if found is None:
        raise Refusal(
            ErrorCode.UNSUPPORTED_FORMAT,
            "This is not a JPEG, PNG, BMP, TIFF, WebP, GIF, AVIF or HEIC image, and not a PDF.",
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about metadata that is dropped anyway
            image, frames = _decoded(data, found, limits, page)
    except (Refusal, MemoryError):
        raise
    except Exception as error:
        raise _refusal(error, found) from error
    return Decoded(image, found, frames.count, found in _LOSSY or (found == "webp" and not frames.lossless))


def too_large(size: int, max_bytes: int) -> Refusal:
    """Return the refusal of a file of that size in bytes."""
    message = f"The file has {size / 1e6:.1f} MB; at most {max_bytes / 1e6:g} MB are accepted."
    return Refusal(ErrorCode.FILE_TOO_LARGE, message)


def _open(data: bytes, found: str) -> Image.Image:
    return Image.open(io.BytesIO(data), formats=(_PILLOW_NAMES[found],))


def _decoded(data: bytes, found: str, limits: Limits, page: int) -> tuple[Image.Image, Frames]:
    """Return the pixels of the first frame or a page, and what the headers declare."""
    if found == "pdf":
        return _pdf_page(data, limits, page)
    header = bmp.read_header(data) if found == "bmp" else None
    if header is not None:
        frames = Frames(header.width, header.height, 1, header.width * header.height)
        _check(frames, limits)
        return bmp.decode(data, header), frames
    if found == "tiff" and page > 1:
        return _tiff_page(data, limits, page)
    layout = tiff.read_layout(data, limits.max_frames) if found == "tiff" else None
    if layout is not None:
        return _from_samples(data, layout, limits)
    if found == "png":
        data = png.essential_chunks(data)
    elif found == "avif":
        data = avif.with_known_brand(data)
    frames = _frames(data, found, limits)
    image = _open(data, found)
    _check(Frames(image.width, image.height, frames.count, frames.pixels, frames.lossless), limits)
    return _loaded(image, data, found), frames


def _pdf_page(data: bytes, limits: Limits, number: int) -> tuple[Image.Image, Frames]:
    with pdf.opened(data) as document:
        width, height = pdf.size_of(document[number - 1], limits.pdf_dpi, limits.max_side, limits.max_pixels)
        frames = Frames(width, height, len(document), width * height)
        _check(frames, limits)
        return pdf.drawn(document, number, (width, height)), frames


def _tiff_page(data: bytes, limits: Limits, number: int) -> tuple[Image.Image, Frames]:
    """Return a page after the first; those behind it are not counted again."""
    if not tiff.is_page(data, number):
        raise Refusal(ErrorCode.UNSUPPORTED_FORMAT, "This image of the TIFF is a preview or a mask, not a page.")
    layout = tiff.read_layout(data, number, number)
    if layout is not None:
        return _from_samples(data, layout, limits)
    image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    image.seek(number - 1)
    if _ICC not in image.tag_v2:
        image.info.pop("icc_profile", None)  # Pillow keeps the first page's
    frames = Frames(image.width, image.height, number, image.width * image.height)
    _check(frames, limits)
    return _loaded(image, data, "tiff"), frames


def _from_samples(data: bytes, layout: tiff.Layout, limits: Limits) -> tuple[Image.Image, Frames]:
    frames = Frames(layout.width, layout.height, layout.pages, layout.width * layout.height)
    _check(frames, limits)
    return tiff_samples.decode(data, layout), frames


def _loaded(image: Image.Image, data: bytes, found: str) -> Image.Image:
    """Return the image with its pixels. A second load() of a damaged image succeeds silently: the first one counts."""
    frame = image.tile[0].extents if isinstance(image, GifImagePlugin.GifImageFile) else None
    image.info.pop("xmp", None)  # a TIFF would be turned by the orientation in XMP, which browsers ignore
    try:
        image.load()
    except OSError:
        whole = jpeg.without_end(data) if found == "jpeg" else None
        if whole is None:
            raise
        return whole
    if found == "png":
        png.apply_transparency(image, data)
    return gif.on_canvas(image, frame) if frame is not None else image


def _frames(data: bytes, found: str, limits: Limits) -> Frames:
    """Return the frames that the headers declare, checked against the limits, without decoding."""
    if found == "gif":
        frames = gif_frames(data, limits.max_frames)
    elif found == "webp":
        frames = webp_frames(data, limits.max_frames)
    else:
        frames = _count_frames(_open(data, found), found, limits)
    _check(frames, limits)
    return frames


def _count_frames(image: Image.Image, found: str, limits: Limits) -> Frames:
    width, height = image.size
    count = 1 if found in {"jpeg", "bmp"} else int(getattr(image, "n_frames", 1)) if found != "tiff" else 0
    if found not in {"tiff", "heif"}:  # frames share one canvas
        return Frames(width, height, count, width * height * count)
    pixels, at = 0, 0
    while at <= limits.max_frames and (found == "tiff" or pixels <= limits.max_pixels):  # they differ in size
        try:
            image.seek(at)
        except EOFError:
            break
        pixels += image.width * image.height
        at += 1
    return Frames(width, height, max(at, 1), width * height if found == "tiff" else max(pixels, width * height))


def _check(frames: Frames, limits: Limits) -> None:
    side = max(frames.width, frames.height)
    if side > limits.max_side:
        raise Refusal(
            ErrorCode.DIMENSIONS_TOO_LARGE,
            f"The image is {frames.width} x {frames.height} pixels; at most {limits.max_side} a side are accepted.",
        )
    if frames.width < 1 or frames.height < 1:
        raise Refusal(ErrorCode.CORRUPT_IMAGE, "The image declares a width or height of zero.")
    if frames.pixels > limits.max_pixels or frames.count > limits.max_frames:
        over = f" over its {frames.count} frames" if frames.count > 1 else ""
        raise Refusal(
            ErrorCode.TOO_MANY_PIXELS,
            f"The image has {frames.pixels / 1e6:.1f} megapixels{over}; at most {limits.max_pixels / 1e6:g} megapixels "
            f"and {limits.max_frames} frames are accepted.",
        )


def _refusal(error: Exception, found: str) -> Refusal:
    if isinstance(error, pdf.Locked):
        return Refusal(ErrorCode.CORRUPT_IMAGE, "The PDF is encrypted. Send it without a password.")
    text = str(error).lower()
    if "memory" in text or "alloc" in text:  # libraries' own errors for the memory limit
        raise MemoryError(text) from error
    name = found.upper() if found != "heif" else "HEIC"
    if isinstance(error, EOFError) or "truncated" in text or "end of file" in text or "eof" in text:
        return Refusal(ErrorCode.TRUNCATED_IMAGE, f"The {name} file ends before the image does; part of it is missing.")
    return Refusal(ErrorCode.CORRUPT_IMAGE, f"The {name} file is damaged and cannot be read.")
