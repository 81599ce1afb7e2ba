"""Spooling: an uploaded file is written to disk, hashed and counted as it arrives; its first bytes give its format.

Never more than a write buffer of it is in memory.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gateway.http.digests import DigestCheck, mismatch
from gateway.http.problems import Problem, unavailable
from gateway.http.spool_space import SPACE
from gateway.settings import GatewaySettings
from schemas.formats import MEDIA_TYPES, SNIFF_BYTES, sniff
from schemas.http.problems import ProblemCode

_log = logging.getLogger(__name__)

BUFFER = 1 << 20  # bytes buffered before one write and hash in a thread
ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")  # first bytes of a zip archive, the second of an empty one
CLOSE = {"Connection": "close"}  # the rest of the body is not read


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One complete uploaded file, on disk until the request ends."""

    path: Path
    size: int  # bytes
    sha256: str
    format: str
    filename: str | None

    @property
    def content_type(self) -> str:
        """The media type by the first bytes of the file."""
        return MEDIA_TYPES[self.format]


class Arriving:
    """A file being written to disk. `take` buffers, on the loop; `write` writes and hashes, in a thread.

    `ready` raises the problem of an invalid file. With `strict`, when the request is only this file, `take` raises it.
    """

    def __init__(
        self,
        path: Path,
        filename: str | None,
        *,
        max_bytes: int,
        strict: bool,
        declared: DigestCheck | None = None,
        max_archive_bytes: int = 0,
    ) -> None:
        """Open the file at a path. Raises OSError. Zip archives are accepted if `max_archive_bytes` is set."""
        self.path, self.filename = path, filename
        self.size = 0
        self.ended = False
        self._max_bytes, self._strict, self._max_archive_bytes = max_bytes, strict, max_archive_bytes
        self._declared = declared or DigestCheck()
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._buffer = bytearray()
        self._head = b""
        self._problem: Problem | None = None

    @property
    def buffered(self) -> int:
        """The number of buffered bytes."""
        return len(self._buffer)

    @property
    def refused(self) -> bool:
        """Whether the file is already known to be invalid."""
        return self._problem is not None

    @property
    def is_archive(self) -> bool:
        """Whether it is an archive, by its first bytes."""
        return bool(self._max_archive_bytes) and self._head.startswith(ARCHIVES)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the written bytes."""
        return self._hash.hexdigest()

    def take(self, data: bytes | memoryview) -> None:
        """Buffer bytes. Raises Problem if strict and the file is too large or not an image."""
        if self._problem is not None:
            return
        self.size += len(data)
        if len(self._head) < SNIFF_BYTES:
            self._head += bytes(data[: SNIFF_BYTES - len(self._head)])
            if len(self._head) == SNIFF_BYTES:
                self._check_format()
        most = self._max_archive_bytes if self.is_archive else self._max_bytes
        if self.size > most:
            self._refuse(too_large(most))
        if self._problem is not None:
            return
        self._buffer.extend(data)

    def write(self) -> None:
        """Write and hash the buffer. Raises OSError, and Problem if uploads in progress have no more space."""
        data, self._buffer = self._buffer, bytearray()
        SPACE.grow(self.path, len(data))
        self._hash.update(data)
        self._declared.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> None:
        """Close the file; remove it if it is invalid."""
        self._file.close()
        if self._problem is not None:
            self._buffer.clear()
            SPACE.remove(self.path)

    def check(self) -> None:
        """Raise Problem if the written file is empty, too large, not an image, or does not match its digest."""
        if self._problem is None and self.size < SNIFF_BYTES:
            self._check_format()
        if not self.size:
            raise Problem(ProblemCode.EMPTY_FILE, "The file is empty.")
        if self._problem is not None:
            raise self._problem
        self._declared.check("the file")

    def ready(self, sha256: str | None = None) -> SpooledFile:
        """Return the written image. Raises Problem: see `check`, or another SHA-256 than this."""
        self.check()
        if sha256 is not None and sha256 != self.sha256:
            raise mismatch("The SHA-256 of the file does not match the field `sha256`.")
        return SpooledFile(self.path, self.size, self.sha256, sniff(self._head) or "", self.filename)

    def _check_format(self) -> None:
        if self.size and not self.is_archive and sniff(self._head) is None:
            detail = f"The first bytes of the file match none of: {', '.join(MEDIA_TYPES)}."
            self._refuse(Problem(ProblemCode.UNSUPPORTED_FORMAT, detail, headers=CLOSE if self._strict else {}))

    def _refuse(self, problem: Problem) -> None:
        if self._strict:
            raise problem
        self._problem = problem
        self._buffer.clear()


def too_large(max_bytes: int) -> Problem:
    """Return the error of a file that is too large."""
    return Problem(ProblemCode.FILE_TOO_LARGE, f"A file may have {max_bytes} bytes at most.", headers=CLOSE)


@contextlib.contextmanager
def spool_folder(settings: GatewaySettings) -> Iterator[Path]:
    """Yield a temporary folder for uploads, removed on exit. Raises Problem if the disk is full."""
    with contextlib.ExitStack() as stack:
        with room(settings):
            folder = tempfile.TemporaryDirectory(prefix="darkroom-upload-", dir=settings.spool_dir)
            path = Path(stack.enter_context(folder))
        SPACE.open(path, settings)
        try:
            yield path
        finally:
            SPACE.close(path)


@contextlib.contextmanager
def room(settings: GatewaySettings) -> Iterator[None]:
    """Raise Problem (503) for an OSError of the gateway's disk."""
    try:
        yield
    except OSError as error:
        _log.error("uploads cannot be spooled to disk", extra={"error": repr(error)})
        raise unavailable("The gateway's disk", retry_after_s=settings.retry_after_s) from error


def clean_filename(name: str) -> str | None:
    """Return the last part of a client's file name, without control characters; for display, never opened."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    with contextlib.suppress(ValueError):
        last = last.encode("utf-8", "ignore").decode()
    return "".join(letter for letter in last if letter.isprintable())[:255] or None
