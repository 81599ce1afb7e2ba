"""Object keys: the layout of the bucket, and the validity of keys."""

from __future__ import annotations

import re

KEY_BYTES = 1024  # S3's limit for a whole key
SEGMENT_BYTES = 200  # below every file system's 255
# Checked several times for every event: one search instead of a loop over segments and characters.
_INVALID = re.compile(r"[\x00-\x1f\x7f\\]|(?:^|/)\.{0,2}(?:/|\Z)")


def originals_prefix(owner: str) -> str:
    """Return the prefix of an owner's originals."""
    return f"originals/{owner}/"


def original_key(owner: str, sha256: str) -> str:
    """Return the key of an original: the bytes as received, private, once per owner."""
    return f"{originals_prefix(owner)}{sha256[:2]}/{sha256}"


def image_prefix(image_id: str) -> str:
    """Return the prefix of all generations of an image, sharded by the id's random end: UUIDv7 starts with time."""
    return f"images/{image_id[-2:]}/{image_id}/"


def image_key(image_id: str, generation: int, name: str, *, run: int = 0) -> str:
    """Return the key of one file of one generation of an image.

    A rerun of a stage has its own prefix: until its fact is recorded, the record names the previous files.
    """
    return f"{image_prefix(image_id)}{generation}/{f'r{run}/' if run else ''}{name}"


def results_prefix(owner: str) -> str:
    """Return the prefix of an owner's computed results."""
    return f"results/{owner}/"


def result_key(owner: str, input_sha256: str, stage: str, version: str, parameters: str) -> str:
    """Return the key of a computed result, made of everything it depends on."""
    return f"{results_prefix(owner)}{input_sha256}/{stage}/{version}/{parameters}.json"


def receipt_key(job_id: str) -> str:
    """Return the key of a job's receipt, which the gateway writes before it answers 202."""
    return f"jobs/{job_id}.json"


def uploads_prefix(owner: str) -> str:
    """Return the prefix of an owner's unfinished upload sessions, resumable or direct."""
    return f"uploads/{owner}/"


def upload_key(owner: str, upload_id: str) -> str:
    """Return the key of an unfinished upload session's record."""
    return f"{uploads_prefix(owner)}{upload_id}.json"


def ended_upload_key(owner: str, upload_id: str) -> str:
    """Return the key of an ended upload session's outcome."""
    return f"uploaded/{owner}/{upload_id}.json"


def pieces_prefix(owner: str, upload_id: str) -> str:
    """Return the prefix of the chunks received of a resumable upload."""
    return f"pieces/{owner}/{upload_id}/"


def finishing_prefix(owner: str, upload_id: str) -> str:
    """Return the prefix of the leases with which gateways complete an upload."""
    return f"finishing/{owner}/{upload_id}/"


def staged_key(owner: str, upload_id: str) -> str:
    """Return the key a client uploads an object to directly, before it is accepted."""
    return f"incoming/{owner}/{upload_id}"


UNFINISHED = ("uploads/", "uploaded/", "pieces/", "finishing/", "incoming/")


def check_key(key: str) -> str:
    """Return the key, or raise ValueError if it is invalid: it could escape the store or be ambiguous.

    Valid keys are relative, have no segment that is empty, "." or "..", no control character and no backslash.
    """
    try:
        size = len(key.encode())
    except UnicodeEncodeError:
        raise ValueError("an object key must be valid Unicode") from None
    if size > KEY_BYTES or _INVALID.search(key) is not None:
        raise ValueError(f"not an object key: {key[:80]!r}")
    if size > SEGMENT_BYTES and any(len(s.encode()) > SEGMENT_BYTES for s in key.split("/")):
        raise ValueError(f"not an object key: {key[:80]!r}")
    return key


def is_below(prefix: str, key: str) -> bool:
    """Return whether a key, which another service may have chosen, is valid and begins with a prefix."""
    try:
        return check_key(key).startswith(prefix)
    except ValueError:
        return False


def check_prefix(prefix: str) -> str:
    """Return the prefix of a listing (any start of a key, or ""), or raise ValueError."""
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix
