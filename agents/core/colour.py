"""Bring any decoded image to upright 8-bit sRGB: greyscale, RGB or RGBA."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageCms

_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
_LAB = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
_ORIENTATION = 0x0112  # EXIF 2.32, table 4
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def to_upright_srgb(image: Image.Image) -> Image.Image:
    """Return the image in mode L, RGB or RGBA, upright, in sRGB, `info` empty. RGBA if any pixel is transparent.

    A broken EXIF block counts as upright, a broken colour profile as sRGB.
    """
    transposition = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile")
    plain, alpha = _eight_bit(image)
    plain = _in_srgb(plain, profile if isinstance(profile, bytes) else None)
    if alpha is not None and alpha.getextrema() != (255, 255):
        plain = plain.convert("RGB")
        plain.putalpha(alpha)
    if transposition is not None:
        plain = plain.transpose(transposition)
    if plain is image:  # transpose and convert copy; without them the caller's image must not change
        plain = plain.copy()
    plain.info = {}
    return plain


def _orientation(image: Image.Image) -> int:
    """Return the orientation in EXIF.

    Pillow's getexif() takes one from XMP as well, which browsers ignore. It turns a TIFF when it loads the pixels.
    """
    try:
        exif = Image.Exif()
        exif.load(image.info.get("exif", b""))
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # hostile EXIF raises any exception
        return 1


def _eight_bit(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours (L, RGB, CMYK or LAB) and the alpha channel, if there is one."""
    mode = image.mode
    if mode in {"1", "L", "RGB"} and "transparency" in image.info:
        image = image.convert("RGBA")
    elif mode in {"P", "PA"}:
        transparent = mode == "PA" or "transparency" in image.info or "A" in getattr(image.palette, "mode", "")
        image = image.convert("RGBA" if transparent else "RGB")
    elif mode in {"La", "RGBa"}:
        image = image.convert("LA" if mode == "La" else "RGBA")
    elif mode.startswith("I") or mode == "F":
        return _scaled(image)
    if image.mode in {"LA", "RGBA"}:
        alpha = image.getchannel("A")
        return image.convert("L" if image.mode == "LA" else "RGB"), alpha
    if image.mode == "1":
        return image.convert("L"), None
    if image.mode in {"L", "RGB", "CMYK", "LAB"}:
        return image, None
    return image.convert("RGB"), None  # YCbCr, HSV, RGBX


def _scaled(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Scale 16 bits, or the range that wider numbers use, to 8 bits: Pillow's own conversion would clip."""
    values = np.asarray(image)
    alpha = None
    key = image.info.get("transparency")
    if isinstance(key, int):
        alpha = Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8))
    if values.dtype.kind == "f":
        values = np.nan_to_num(values)
    low, high = float(values.min()), float(values.max())
    if image.mode.startswith("I;16") or (image.mode == "I" and low >= 0 and high <= 65535):
        low, high = 0.0, 65535.0
    elif image.mode == "F" and low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    factor = 255.0 / (high - low) if high > low else 0.0
    grey = ((values.astype(np.float32) - low) * factor + 0.5).clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey), alpha


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    if image.mode == "LAB":
        return _transformed(image, _LAB)
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
            if image.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
                pass  # grey pixels under an RGB profile: its tone curve is close to sRGB's, without hue
            elif not (ImageCms.getProfileDescription(source).startswith("sRGB") and image.mode != "CMYK"):
                return _transformed(image, source)
        except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
            pass
    return image if image.mode in {"L", "RGB"} else image.convert("RGB")


def _transformed(image: Image.Image, source: ImageCms.ImageCmsProfile) -> Image.Image:
    mode = "L" if image.mode == "L" else "RGB"
    made = ImageCms.profileToProfile(
        image,
        source,
        _SRGB,
        renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if made is None:
        raise ValueError("the colour transform returned no image")
    return made.convert(mode)
