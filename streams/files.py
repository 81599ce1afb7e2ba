"""Objects: the FileStore protocol, the key scheme, and its adapters (S3 through the minio SDK; a directory).

Keys are deterministic, so writing twice is harmless.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from schemas.values import ObjectRef


class ObjectMissing(Exception):
    """There is no object under that key."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store knows of an object."""

    key: str
    size: int
    content_type: str
    etag: str
    modified: float  # unix seconds


class FileStore(Protocol):
    """An object store. Calls raise ObjectMissing, or DependencyAway when the store does not answer in time."""

    bucket: str

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        """Write an object whole or not at all (a Path is streamed from disk); return its claim check."""

    async def get(self, key: str, *, limit: int | None = None) -> bytes:
        """Read an object; ValueError if it is larger than `limit` bytes."""

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Read an object, or a range of it, in chunks."""

    async def stat(self, key: str) -> ObjectInfo | None:
        """Return what is known of an object, None when there is none."""

    async def copy(self, source: str, target: str) -> None:
        """Copy within the bucket, without the bytes passing through this process where the store can."""

    async def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    def list(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Walk the objects under a prefix."""

    async def presign_get(self, key: str, *, expires_s: int, filename: str | None = None) -> str | None:
        """Return a URL that reads the object without us, None where the store has no such thing."""

    async def check(self) -> None:
        """Prove that the bucket can be written and read; DependencyAway if not."""


async def delete_prefix(files: FileStore, prefix: str) -> int:
    """Remove every object under a prefix; return how many there were."""
    count = 0
    async for found in files.list(prefix):
        await files.delete(found.key)
        count += 1
    return count


def original_key(owner: str, sha256: str) -> str:
    """Return where the bytes as received are kept: once per owner, private."""
    return f"originals/{owner}/{sha256[:2]}/{sha256}"


def image_prefix(image_id: str) -> str:
    """Return the folder of all generations of one image. Sharded by the id's random end: UUIDv7 starts with time."""
    return f"images/{image_id[-2:]}/{image_id}/"


def image_key(image_id: str, generation: int, name: str) -> str:
    """Return where one file of one generation of an image is kept."""
    return f"{image_prefix(image_id)}{generation}/{name}"


def result_key(owner: str, input_sha256: str, stage: str, version: str, parameters: str) -> str:
    """Return where a computed result is kept: the name says everything it depends on."""
    return f"results/{owner}/{input_sha256}/{stage}/{version}/{parameters}.json"


def receipt_key(job_id: str) -> str:
    """Return where the gateway's receipt is kept: written before it answers 202."""
    return f"jobs/{job_id}.json"


def open_files(settings: object) -> AbstractAsyncContextManager[FileStore]:
    """Open the adapter the settings name: S3 when an endpoint is given, else a directory."""
    raise NotImplementedError  # the adapters land next
