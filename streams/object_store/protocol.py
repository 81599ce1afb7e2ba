"""The object store protocol.

Keys are deterministic, so that repeated writes are idempotent. The adapters are `streams.object_store.s3` (any S3
server, through the minio SDK) and `streams.object_store.directory` (a folder); one contract suite tests both.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from schemas.values import ObjectRef


class ObjectMissing(Exception):
    """No object exists under the key."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """Metadata of an object. In listings the content type is "" and sha256 is None; `stat` returns both."""

    key: str
    size: int
    content_type: str
    etag: str
    modified: float  # unix seconds
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class PostForm:
    """A presigned form with which a client uploads one object to the store: multipart/form-data, the file last."""

    url: str
    fields: Mapping[str, str]


class FileStore(Protocol):
    """An object store.

    Calls raise ObjectMissing, DependencyUnavailable if the store does not answer in time or is full, and ValueError
    for an invalid key (`check_key`) or an unreadable Path.
    """

    bucket: str

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        """Write an object atomically (a Path is streamed from disk); return its reference."""

    async def create(self, key: str, data: bytes, *, content_type: str) -> bool:
        """Write an object unless the key exists; return whether it was written. Of concurrent calls one wins.

        False may also mean that an earlier try of the same call wrote it and its answer was lost.
        """

    async def get(self, key: str, *, limit: int | None = None) -> bytes:
        """Read an object; ValueError if it is larger than `limit` bytes."""

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        """Read an object, or a range of it, in chunks."""

    async def stat(self, key: str) -> ObjectInfo | None:
        """Return an object's metadata, None if there is no object."""

    async def existing(self, keys: Collection[str]) -> set[str]:
        """Return those of the keys that have an object: one call for many keys, as each call has a fixed cost."""

    async def copy(self, source: str, target: str) -> None:
        """Copy within the bucket, on the server where the store supports it."""

    async def delete(self, key: str) -> None:
        """Remove an object; a missing one is not an error."""

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        """Iterate over the objects under a prefix in key order, starting after the key `after`."""

    async def presign_get(
        self, key: str, *, expires_s: int, filename: str | None = None, inline: bool = False
    ) -> str | None:
        """Return a presigned URL for reading the object, None if the store has none.

        `filename` is the name browsers save it under; with `inline` they display it.
        """

    async def presign_post(
        self, key: str, *, content_type: str, min_bytes: int, max_bytes: int, expires_s: int
    ) -> PostForm | None:
        """Return a presigned form that writes only this object, of that type and size; None if the store has none.

        It is valid until it expires, also for repeated writes.
        """

    async def check(self) -> None:
        """Check that the bucket can be written and read; DependencyUnavailable if not."""


async def delete_prefix(files: FileStore, prefix: str) -> int:
    """Remove every object under a prefix; return their number."""
    count = 0
    async for found in files.list(prefix):
        await files.delete(found.key)
        count += 1
    return count


def open_source(path: Path) -> BufferedReader:
    """Open a local file to upload; ValueError, not a store error, if it is unreadable."""
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror}") from error
