"""Object keys: the layout of the bucket, and which keys are valid."""

from __future__ import annotations

KEY_BYTES = 1024  # S3's limit for a whole key
SEGMENT_BYTES = 200  # below every file system's 255


def original_key(owner: str, sha256: str) -> str:
    """Return where the bytes as received are kept: once per owner, private."""
    return f"originals/{owner}/{sha256[:2]}/{sha256}"


def image_prefix(image_id: str) -> str:
    """Return the folder of all generations of one image. Sharded by the id's random end: UUIDv7 starts with time."""
    return f"images/{image_id[-2:]}/{image_id}/"


def image_key(image_id: str, generation: int, name: str, *, run: int = 0) -> str:
    """Return where one file of one generation of an image is kept.

    A rerun of a stage has a folder of its own: until its fact is recorded, the record names the files before it.
    """
    return f"{image_prefix(image_id)}{generation}/{f'r{run}/' if run else ''}{name}"


def result_key(owner: str, input_sha256: str, stage: str, version: str, parameters: str) -> str:
    """Return where a computed result is kept: the name says everything it depends on."""
    return f"results/{owner}/{input_sha256}/{stage}/{version}/{parameters}.json"


def receipt_key(job_id: str) -> str:
    """Return where the gateway's receipt is kept: written before it answers 202."""
    return f"jobs/{job_id}.json"


def uploads_prefix(owner: str) -> str:
    """Return the folder of an owner's uploads, in parts or straight to the store, that have not ended."""
    return f"uploads/{owner}/"


def upload_key(owner: str, upload_id: str) -> str:
    """Return where the record of such an upload is kept until it has ended."""
    return f"{uploads_prefix(owner)}{upload_id}.json"


def ended_upload_key(owner: str, upload_id: str) -> str:
    """Return where it is kept how such an upload ended."""
    return f"uploaded/{owner}/{upload_id}.json"


def pieces_prefix(owner: str, upload_id: str) -> str:
    """Return the folder of what came so far of an upload in parts."""
    return f"pieces/{owner}/{upload_id}/"


def finishing_prefix(owner: str, upload_id: str) -> str:
    """Return the folder of the turns that gateways took at making an image of an upload."""
    return f"finishing/{owner}/{upload_id}/"


def staged_key(owner: str, upload_id: str) -> str:
    """Return where a client writes an object straight to the store, before it is accepted."""
    return f"incoming/{owner}/{upload_id}"


UNFINISHED = ("uploads/", "uploaded/", "pieces/", "finishing/", "incoming/")


def check_key(key: str) -> str:
    """Return the key, or raise ValueError if it could leave the store or mean two things.

    Relative, of segments none of which is empty, "." or "..", without control characters and backslashes.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError("an object key must be valid Unicode") from None
    segments = key.split("/")
    if not key or size > KEY_BYTES or any(s in ("", ".", "..") for s in segments):
        raise ValueError(f"not an object key: {key[:80]!r}")
    if any(len(s.encode()) > SEGMENT_BYTES for s in segments) or any(c < " " or c in "\\\x7f" for c in key):
        raise ValueError(f"not an object key: {key[:80]!r}")
    return key


def check_prefix(prefix: str) -> str:
    """Return the prefix of a listing (any beginning of a key, or nothing), or raise ValueError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
