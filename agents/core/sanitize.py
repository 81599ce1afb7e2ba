"""Makes an image safe: decodes it within limits, re-encodes only its pixels. Runs in a sandboxed child."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, fields, replace

from PIL import Image
from pydantic import JsonValue

from agents.core.colour import to_upright_srgb
from agents.core.decode import Decoded, Limits, decode
from agents.core.fingerprint import Fingerprint, fingerprint

JPEG_QUALITY = 95
# Larger opaque images are written as JPEG whatever their format: for 25 megapixels of photo, PNG at level 1 took 0.8 to
# 1.4 s and 10 to 22 MB, JPEG 0.1 s and 3 to 5 MB; level 6 took 2 to 7 s to save a quarter.
PNG_MAX_PIXELS = 25_000_000
_PNG_EFFORT = 1  # zlib level

_NO_PIXELS = Image.new("L", (1, 1))

_MAKE, _MODEL, _EXIF, _TAKEN = 0x010F, 0x0110, 0x8769, 0x9003  # EXIF 2.32 tags


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A safe master and the image's properties."""

    master: bytes
    extension: str  # jpg or png
    content_type: str
    width: int  # pixels, upright
    height: int
    source_format: str
    frames: int
    pages: int  # of a document, else 1; the master is the first
    has_alpha: bool
    fingerprint: Fingerprint
    captured_at: str | None
    camera: str | None


@dataclass(frozen=True, slots=True)
class SafePage:
    """One page of a document, as safe as a master."""

    body: bytes
    extension: str  # jpg or png
    width: int  # pixels, upright
    height: int


def sanitize(data: bytes, limits: Limits, *, keep_capture_details: bool = False) -> Sanitized:
    """Return the safe form of an image: upright, sRGB, first frame or page, no metadata; equal input, equal bytes.

    Opaque images from a lossy format become JPEG (quality 95, 4:4:4), all others PNG; a PDF's page the smaller of both.
    Raises Refusal or MemoryError.
    """
    decoded = decode(data, limits)
    captured_at, camera = _capture(decoded.image) if keep_capture_details else (None, None)
    image = to_upright_srgb(decoded.image)
    source = replace(decoded, image=_NO_PIXELS)
    del decoded  # frees the pixels: 400 MB at 100 megapixels
    master, extension = _encoded(image, source)
    return Sanitized(
        master=master,
        extension=extension,
        content_type="image/jpeg" if extension == "jpg" else "image/png",
        width=image.width,
        height=image.height,
        source_format=source.format,
        frames=source.frames,
        pages=source.pages,
        has_alpha=image.mode == "RGBA",
        fingerprint=fingerprint(image),
        captured_at=captured_at,
        camera=camera,
    )


def sanitize_page(data: bytes, limits: Limits, number: int) -> SafePage:
    """Return the safe form of a page of a document, counted from 1. Raises Refusal or MemoryError."""
    decoded = decode(data, limits, number)
    image = to_upright_srgb(decoded.image)
    body, extension = _encoded(image, decoded)
    return SafePage(body, extension, image.width, image.height)


def sanitize_in_child(args: dict[str, JsonValue], data: bytes) -> tuple[dict[str, JsonValue], list[bytes]]:
    """The sandbox's entry point. In: limits as JSON. Out: the image's properties as JSON, and its master.

    With `page`, a number above 1: extension, width and height of that page, and its image.
    """
    keep = args.get("keep_capture_details") is True
    limits = Limits(**{limit.name: int(str(args[limit.name])) for limit in fields(Limits)})
    if (number := int(str(args.get("page", 1)))) > 1:
        page = sanitize_page(data, limits, number)
        return {"extension": page.extension, "width": page.width, "height": page.height}, [page.body]
    made = sanitize(data, limits, keep_capture_details=keep)
    palette: list[JsonValue] = [{"hex": colour, "share": share} for colour, share in made.fingerprint.palette]
    return {
        "extension": made.extension,
        "content_type": made.content_type,
        "width": made.width,
        "height": made.height,
        "source_format": made.source_format,
        "frames": made.frames,
        "pages": made.pages,
        "has_alpha": made.has_alpha,
        "perceptual_hash": made.fingerprint.perceptual_hash,
        "dominant_colour": made.fingerprint.palette[0][0],
        "palette": palette,
        "thumbhash": made.fingerprint.thumbhash,
        "capture": {"captured_at": made.captured_at, "camera": made.camera} if keep else None,
    }, [made.master]


def _encoded(image: Image.Image, source: Decoded) -> tuple[bytes, str]:
    """Return the bytes of an image and their extension."""
    if image.mode != "RGBA" and (source.lossy or image.width * image.height > PNG_MAX_PIXELS):
        return _jpeg(image), "jpg"
    png = _png(image)
    if source.format == "pdf" and len(photo := _jpeg(image)) < len(png):  # a scan or a photo
        return photo, "jpg"
    return png, "png"


def _jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return out.getvalue()


def _png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=_PNG_EFFORT)
    return out.getvalue()


def _capture(image: Image.Image) -> tuple[str | None, str | None]:
    """Return capture time and camera, as far as the EXIF has them in a valid form."""
    try:
        exif = image.getexif()
        taken = str(exif.get_ifd(_EXIF).get(_TAKEN, ""))
        camera = " ".join(_plain(str(exif.get(tag, ""))) for tag in (_MAKE, _MODEL)).strip()
    except Exception:  # hostile EXIF fails in as many ways as there are parsers
        return None, None
    found = re.match(r"(\d{4}):(\d\d):(\d\d) (\d\d:\d\d:\d\d)", taken)
    return ("{}-{}-{}T{}".format(*found.groups()) if found else None), camera or None


def _plain(text: str) -> str:
    return "".join(letter for letter in text if letter.isprintable()).strip()[:64]
