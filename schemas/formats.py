"""Supported formats of images and documents by their first bytes, independent of a client's content type."""

from __future__ import annotations

SNIFF_BYTES = 64  # bytes from the start of a file that `sniff` needs at most

MEDIA_TYPES: dict[str, str] = {
    "jpeg": "image/jpeg",
    "png": "image/png",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "webp": "image/webp",
    "gif": "image/gif",
    "avif": "image/avif",
    "heic": "image/heic",
    "pdf": "application/pdf",
}
IMAGE_TYPES = frozenset(kind for kind in MEDIA_TYPES.values() if kind.startswith("image/"))

_PREFIXES: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"BM", "bmp"),
    (b"II*\x00", "tiff"),
    (b"MM\x00*", "tiff"),
    (b"II+\x00", "tiff"),  # BigTIFF
    (b"MM\x00+", "tiff"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"%PDF-", "pdf"),
)
# ISO/IEC 23008-12 (HEIF) annex B and AV1 Image File Format 1.1 section 6: brands of the `ftyp` box.
_AVIF_BRANDS = frozenset({b"avif", b"avis"})
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_HEIF_BRANDS = frozenset({b"mif1", b"msf1", b"mif2"})  # structural: does not name the codec
_SMALLEST_BMP_HEADER = 12  # bytes of BITMAPCOREHEADER, the oldest


def sniff(head: bytes) -> str | None:
    """Return the format's name by the first SNIFF_BYTES bytes of a file, None if unsupported."""
    for prefix, name in _PREFIXES:
        if head.startswith(prefix):
            return None if name == "bmp" and not _is_bmp(head) else name
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "webp"
    if head[4:8] == b"ftyp":
        return _heif_kind(head)
    return None


def _is_bmp(head: bytes) -> bool:
    # Texts may start with "BM"; in a bitmap the size of the info header follows, 12 to 124 bytes.
    return len(head) >= 18 and _SMALLEST_BMP_HEADER <= int.from_bytes(head[14:18], "little") <= 124


def _heif_kind(head: bytes) -> str | None:
    end = min(int.from_bytes(head[:4], "big"), len(head))
    major = head[8:12]
    if major in _AVIF_BRANDS:
        return "avif"
    if major in _HEIC_BRANDS:
        return "heic"
    compatible = {head[at : at + 4] for at in range(16, end - 3, 4)}
    if major in _HEIF_BRANDS:
        return "avif" if compatible & _AVIF_BRANDS else "heic"
    return None
