"""Objects: the FileStore protocol, the key scheme, and which adapter serves it.

Keys are deterministic, so writing twice is harmless. The adapters are `streams.files_s3` (any S3 server, through
the minio SDK) and `streams.files_directory` (a folder); one contract suite holds both to what is said here.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Protocol

from schemas.values import ObjectRef
from streams.breaker import Breakers
from streams.settings import FilesSettings

KEY_BYTES = 1024  # S3's limit for a whole key
SEGMENT_BYTES = 200  # below every file system's 255


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
    """An object store. Calls raise ObjectMissing, DependencyAway when the store does not answer in time or is full,
    and ValueError for a key that `check_key` refuses or a Path that cannot be read.
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
"""Where objects of uploads lie that are over after a while, whether they were finished or not."""


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


def open_source(path: Path) -> BufferedReader:
    """Open a file that is to become an object; ValueError if it cannot be read, for that is not the store's fault."""
    try:
        return path.open("rb")
    except OSError as error:
        raise ValueError(f"cannot read {path.name}: {error.strerror}") from error


def open_files(settings: FilesSettings, breakers: Breakers | None = None) -> AbstractAsyncContextManager[FileStore]:
    """Open the adapter the settings name: S3 when an endpoint is given, else a directory; behind breakers, if given.

    Creates the bucket when it is missing. Entering raises DependencyAway when the store does not answer, NotReady
    when it refuses our credentials.
    """
    if breakers is not None:
        from streams.files_breaking import open_breaking  # noqa: PLC0415 - it imports this module

        return open_breaking(open_files(settings), breakers)
    if settings.endpoint:
        from streams.files_s3 import open_s3_files  # noqa: PLC0415 - the directory needs no S3 SDK

        return open_s3_files(settings)
    from streams.files_directory import open_directory_files  # noqa: PLC0415

    return open_directory_files(settings)
