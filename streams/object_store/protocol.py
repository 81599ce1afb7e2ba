"""Objects: the FileStore protocol, the key scheme, and which adapter serves it.

Keys are deterministic, so writing twice is harmless. The adapters are `streams.object_store.s3` (any S3 server, through
the minio SDK) and `streams.object_store.directory` (a folder); one contract suite holds both to what is said here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from schemas.values import ObjectRef


class ObjectMissing(Exception):
    """There is no object under that key."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What the store knows of an object. A listing knows neither content type ("") nor sha256 (None); `stat` does."""

    key: str
    size: int
    content_type: str
    etag: str
    modified: float  # unix seconds
    sha256: str | None = None


@dataclass(frozen=True, slots=True)
class PostForm:
    """A form by which a client sends one object straight to the store: multipart/form-data, the file last."""

    url: str
    fields: Mapping[str, str]


class FileStore(Protocol):
    """An object store.

    Calls raise ObjectMissing, DependencyUnavailable if the store does not answer in time or is full, and ValueError
    for a key that `check_key` refuses or a Path that cannot be read.
    """

    bucket: str

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        """Write an object whole or not at all (a Path is streamed from disk); return its claim check."""

    async def create(self, key: str, data: bytes, *, content_type: str) -> bool:
        """Write an object unless there is one under that key; say whether it was written. One of several at once wins.

        False may also mean that an earlier try of this very call has written it, and its answer was lost.
        """

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

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        """Walk the objects under a prefix by key, from the first whose key is greater than `after`."""

    async def presign_get(
        self, key: str, *, expires_s: int, filename: str | None = None, inline: bool = False
    ) -> str | None:
        """Return a URL that reads the object without us, None where the store has no such thing.

        With a name the object is to be saved under it, or, `inline`, shown.
        """

    async def presign_post(
        self, key: str, *, content_type: str, min_bytes: int, max_bytes: int, expires_s: int
    ) -> PostForm | None:
        """Return a form that writes this object and no other without us, of that type and size.

        None where the store has no such thing. It can be used until it expires, also to write the object again.
        """

    async def check(self) -> None:
        """Prove that the bucket can be written and read; DependencyUnavailable if not."""


async def delete_prefix(files: FileStore, prefix: str) -> int:
    """Remove every object under a prefix; return how many there were."""
    count = 0
    async for found in files.list(prefix):
        await files.delete(found.key)
        count += 1
    return count


"""Where objects of uploads lie that are over after a while, whether they were finished or not."""


def open_source(path: Path) -> BufferedReader:
    """Open a file that is to become an object; ValueError if it cannot be read, for that is not the store's fault."""
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror}") from error
