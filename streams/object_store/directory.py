"""The object store in a folder: the embedded default, for any number of processes on one machine.

`data/` contains the objects by key, `meta/` their headers as in S3, `tmp/` writes in progress, `index/` the index of
receipts. Objects are written by rename, so that a reader sees either the old or the new object, and never changed in
place, so that a copy is a hard link. One file lock covers the renames and removals of a store.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import json
import mimetypes
import os
import shutil
import stat
import time
import uuid
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from schemas.values import ObjectRef
from streams.errors import AccessDenied, DependencyUnavailable, NotReady
from streams.object_store.directory_index import NameIndex
from streams.object_store.keys import check_key, check_prefix
from streams.object_store.protocol import FileStore, ObjectInfo, ObjectMissing, PostForm, open_source
from streams.settings import FilesSettings

CHUNK = 256 * 1024
PAGE = 500  # objects listed per call in a thread
STALE_S = 3600.0  # a write in progress modifies its file far more often

R = TypeVar("R")


_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS)


class _KeyExists(Exception):
    """An object exists under the key."""


class DirectoryFiles:
    """A FileStore in a folder."""

    def __init__(self, settings: FilesSettings) -> None:
        self.bucket = settings.bucket
        root = settings.directory / settings.bucket
        self._data, self._meta, self._tmp = root / "data", root / "meta", root / "tmp"
        self._lock = root / "lock"
        self._index = NameIndex(self._data, root / "index")
        self._closed = False
        self._timeout_s = settings.timeout_s
        self._pool = ThreadPoolExecutor(settings.pool_size, thread_name_prefix="files")

    async def open(self) -> None:
        """Create the folders and remove files of crashed writers. NotReady if folders cannot be created."""
        await self._call("", self._prepare)
        self._pool.submit(self._index.rebuild, lambda: self._closed)  # until it is done, listings read the folder

    def close(self) -> None:
        """Close the threads."""
        self._closed = True
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        return await self._call(key, lambda: self._put(check_key(key), data, content_type, sha256))

    async def create(self, key: str, data: bytes, *, content_type: str) -> bool:
        try:
            await self._call(key, lambda: self._put(check_key(key), data, content_type, None, overwrite=False))
        except _KeyExists:
            return False
        return True

    async def get(self, key: str, *, limit: int | None = None) -> bytes:
        def read() -> bytes:
            with self._path(key).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                if limit is not None and size > limit:
                    raise ValueError(f"{key} has {size} bytes, more than {limit}")
                return file.read()

        return await self._call(key, read)

    async def stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        def begin() -> BinaryIO:
            file = self._path(key).open("rb")
            file.seek(start)
            return file

        file = await self._call(key, begin)
        left = length
        try:
            while left is None or left > 0:
                size = CHUNK if left is None else min(CHUNK, left)
                chunk = await self._call(key, lambda size=size: file.read(size))  # type: ignore[misc]
                if not chunk:
                    return
                left = None if left is None else left - len(chunk)
                yield chunk
        finally:
            file.close()

    async def stat(self, key: str) -> ObjectInfo | None:
        try:
            return await self._call(key, lambda: self._stat(check_key(key)))
        except ObjectMissing:
            return None

    async def existing(self, keys: Collection[str]) -> set[str]:
        paths = {key: f"{self._data}/{check_key(key)}" for key in keys}
        return await self._call("", lambda: {key for key, path in paths.items() if _is_file(path)})

    async def copy(self, source: str, target: str) -> None:
        check_key(target)
        await self._call(source, lambda: self._copy(check_key(source), target))

    async def delete(self, key: str) -> None:
        with suppress(ObjectMissing):
            await self._call(key, lambda: self._delete(check_key(key)))

    async def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        check_prefix(prefix)
        folder = self._data / prefix.rpartition("/")[0]
        walk = self._found(folder, prefix, (after or "").encode())

        def page() -> list[ObjectInfo]:
            return [found for _, found in zip(range(PAGE), walk, strict=False)]

        while found := await self._call(prefix, page):
            for info in found:
                yield info

    async def presign_get(
        self, key: str, *, expires_s: int, filename: str | None = None, inline: bool = False
    ) -> str | None:
        check_key(key)
        return None

    async def presign_post(
        self, key: str, *, content_type: str, min_bytes: int, max_bytes: int, expires_s: int
    ) -> PostForm | None:
        check_key(key)
        return None

    async def check(self) -> None:
        key = f"probe/{uuid.uuid4()}"
        await self.put(key, b"probe", content_type="text/plain")
        try:
            if await self.get(key) != b"probe":
                raise DependencyUnavailable(f"{self._data} returned other bytes than were written")
        except ObjectMissing:
            raise DependencyUnavailable(f"{self._data} lost an object just written") from None
        await self.delete(key)

    async def _call(self, key: str, work: Callable[[], R]) -> R:
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except TimeoutError as error:
            where = self._data.parent
            raise DependencyUnavailable(f"object store {where}: no answer within {self._timeout_s:g} s") from error
        except OSError as error:
            if error.errno in _MISSING:
                raise ObjectMissing(key) from error
            kind = AccessDenied if error.errno in _DENIED else DependencyUnavailable
            raise kind(f"object store {self._data.parent}: {error.strerror or error}") from error

    def _path(self, key: str) -> Path:
        return self._data / check_key(key)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        with self._lock.open("ab") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _prepare(self) -> None:
        try:
            for folder in (self._data, self._meta, self._tmp):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in (*_DENIED, errno.EEXIST, errno.ENOTDIR):
                raise
            where = f"{self._data.parent} (DARKROOM_FILES__DIRECTORY, DARKROOM_FILES__BUCKET)"
            raise NotReady(f"cannot store objects in {where}: {error}") from error
        for left in self._tmp.iterdir():
            with suppress(FileNotFoundError):
                if left.stat().st_mtime < time.time() - STALE_S:
                    left.unlink()

    def _put(
        self, key: str, data: bytes | Path, content_type: str, sha256: str | None, *, overwrite: bool = True
    ) -> ObjectRef:
        source = data if isinstance(data, bytes) else open_source(data)
        temp = self._tmp / uuid.uuid4().hex
        digest, size = hashlib.sha256(), 0
        try:
            with temp.open("xb") as file:
                for chunk in _chunks(source):
                    if sha256 is None:
                        digest.update(chunk)
                    size += len(chunk)
                    file.write(chunk)
                file.flush()
                os.fsync(file.fileno())
            known = sha256 or digest.hexdigest()
            self._publish(temp, key, {"content_type": content_type, "sha256": known}, overwrite=overwrite)
        except FileNotFoundError as error:  # a folder of the store or the temporary file is missing, not an object
            raise DependencyUnavailable(f"object store {self._data.parent}: {error}") from error
        finally:
            temp.unlink(missing_ok=True)
            if not isinstance(source, bytes):
                source.close()
        return ObjectRef(bucket=self.bucket, key=key, sha256=known, size=size, content_type=content_type)

    def _publish(self, temp: Path, key: str, metadata: dict[str, str], *, overwrite: bool = True) -> None:
        target, sidecar, new_sidecar = self._data / key, self._meta / key, temp.with_suffix(".meta")
        try:
            new_sidecar.write_text(json.dumps(metadata))
            with self._locked():
                if not overwrite and target.is_file():
                    raise _KeyExists(key)
                try:
                    _make_folder(target.parent)
                    sidecar.parent.mkdir(parents=True, exist_ok=True)
                    self._index.add(key)
                    new_sidecar.replace(sidecar)
                    temp.replace(target)
                except (NotADirectoryError, FileExistsError, IsADirectoryError) as error:
                    raise ValueError(f"{key} would be both an object and a folder") from error
            _sync_folder(target.parent)
        finally:
            new_sidecar.unlink(missing_ok=True)

    def _stat(self, key: str) -> ObjectInfo:
        path = self._data / key
        found = path.stat()
        if not path.is_file():
            raise ObjectMissing(key)
        metadata = self._metadata(key)
        return ObjectInfo(
            key=key,
            size=found.st_size,
            content_type=metadata["content_type"],
            etag=_etag(found),
            modified=found.st_mtime,
            sha256=metadata.get("sha256"),
        )

    def _metadata(self, key: str) -> dict[str, str]:
        try:
            return {str(k): str(v) for k, v in json.loads((self._meta / key).read_text()).items()}
        except (OSError, ValueError):  # only the object is synced to disk: a power failure may lose its metadata
            return {"content_type": mimetypes.guess_type(key)[0] or "application/octet-stream"}

    def _copy(self, source: str, target: str) -> None:
        if not (self._data / source).is_file():
            raise ObjectMissing(source)
        if source == target:
            return
        temp = self._tmp / uuid.uuid4().hex
        try:
            try:
                os.link(self._data / source, temp)
            except OSError as error:
                if error.errno not in (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP):
                    raise
                shutil.copyfile(self._data / source, temp)
            self._publish(temp, target, self._metadata(source))
        finally:
            temp.unlink(missing_ok=True)

    def _delete(self, key: str) -> None:
        with self._locked():
            for root in (self._meta, self._data):
                path = root / key
                with suppress(FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError):
                    path.unlink()
                for folder in path.parents:
                    if folder == root:
                        break
                    try:
                        folder.rmdir()
                    except OSError:
                        break
            self._index.remove(key)

    def _found(self, folder: Path, prefix: str, after: bytes) -> Iterator[ObjectInfo]:
        keys = self._index.find(prefix)
        if keys is None:
            yield from self._walk(folder, prefix, after)
            return
        for key in keys:
            if key.encode() > after:
                with suppress(FileNotFoundError):
                    known = (self._data / key).stat()
                    yield ObjectInfo(key, known.st_size, "", _etag(known), known.st_mtime)

    def _walk(self, folder: Path, prefix: str, after: bytes) -> Iterator[ObjectInfo]:
        try:
            with os.scandir(folder) as entries:
                # Sort folders as their keys: "a-b" comes before "a/b".
                found = sorted((entry.name + "/" * entry.is_dir(), entry) for entry in entries)
        except (FileNotFoundError, NotADirectoryError):
            return
        at = folder.relative_to(self._data).as_posix()
        for name, entry in found:
            key = name if at == "." else f"{at}/{name}"
            if name.endswith("/"):
                passed = key.encode() < after and not after.startswith(key.encode())  # with all keys in the folder
                if not passed and (key.startswith(prefix) or prefix.startswith(key)):
                    yield from self._walk(Path(entry.path), prefix, after)
            elif key.startswith(prefix) and key.encode() > after:
                with suppress(FileNotFoundError):
                    known = entry.stat()
                    yield ObjectInfo(key, known.st_size, "", _etag(known), known.st_mtime)


def _is_file(path: str) -> bool:
    """Return whether a file exists; a plain call, since every event asks. Raises OSError if that cannot be known."""
    try:
        return stat.S_ISREG(os.stat(path).st_mode)  # noqa: PTH116
    except (FileNotFoundError, NotADirectoryError):
        return False


def _etag(found: os.stat_result) -> str:
    return f"{found.st_mtime_ns:x}-{found.st_size:x}-{found.st_ino:x}"


def _chunks(source: bytes | BinaryIO) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    while chunk := source.read(CHUNK):
        yield chunk


def _make_folder(folder: Path) -> None:
    missing: list[Path] = []
    while not folder.is_dir():
        missing.append(folder)
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except FileNotFoundError:  # the object and its folder were deleted meanwhile
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@asynccontextmanager
async def open_directory_files(settings: FilesSettings) -> AsyncIterator[FileStore]:
    """Open a folder as an object store; NotReady if it is unusable, DependencyUnavailable if the disk fails."""
    files = DirectoryFiles(settings)
    try:
        await files.open()
        yield files
    finally:
        files.close()
