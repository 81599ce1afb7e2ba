"""Spooling: a file that arrives goes to disk while it is hashed and counted; its first bytes say what it is.

At no time is more than a write buffer of it in memory.
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
from gateway.settings import GatewaySettings
from schemas.formats import MEDIA_TYPES, SNIFF_BYTES, sniff
from schemas.http.problems import ProblemCode

_log = logging.getLogger(__name__)

BUFFER = 1 << 20  # bytes gathered before one write and hash in a thread
ARCHIVES = (b"PK\x03\x04", b"PK\x05\x06")  # how a zip archive begins, the second an empty one
CLOSE = {"Connection": "close"}  # the rest of the body is not read


@dataclass(frozen=True, slots=True)
class SpooledFile:
    """One uploaded file, whole, on disk until the request ends."""

    path: Path
    size: int  # bytes
    sha256: str
    format: str
    filename: str | None

    @property
    def content_type(self) -> str:
        """The media type by the file's own bytes."""
        return MEDIA_TYPES[self.format]


class Arriving:
    """A file on its way to disk. `take` gathers, on the loop; `write` writes and hashes, in a thread.

    What is wrong with it is said by `ready`. With `strict` it is said at once, for nothing else is in the request.
    """

    def __init__(
        self,
        path: Path,
        filename: str | None,
        *,
        max_bytes: int,
        strict: bool,
        promised: DigestCheck | None = None,
        max_archive_bytes: int = 0,
    ) -> None:
        """Take bytes for a path. Raises OSError. A zip archive is taken if it may have bytes at all."""
        self.path, self.filename = path, filename
        self.size = 0
        self.ended = False
        self._max_bytes, self._strict, self._max_archive_bytes = max_bytes, strict, max_archive_bytes
        self._promised = promised or DigestCheck()
        self._file = path.open("wb", buffering=0)
        self._hash = hashlib.sha256()
        self._gathered = bytearray()
        self._head = b""
        self._problem: Problem | None = None

    @property
    def gathered(self) -> int:
        """How many bytes wait to be written."""
        return len(self._gathered)

    @property
    def refused(self) -> bool:
        """Whether something is wrong with it already, so that its bytes are of no use."""
        return self._problem is not None

    @property
    def is_archive(self) -> bool:
        """Whether it is an archive, as far as its first bytes say."""
        return bool(self._max_archive_bytes) and self._head.startswith(ARCHIVES)

    @property
    def sha256(self) -> str:
        """Of all that was written."""
        return self._hash.hexdigest()

    def take(self, data: bytes | memoryview) -> None:
        """Gather bytes. Raises Problem if strict and they are too many, or the file is no image."""
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
        self._gathered.extend(data)

    def write(self) -> None:
        """Write and hash what was gathered. Raises OSError."""
        data, self._gathered = self._gathered, bytearray()
        self._hash.update(data)
        self._promised.update(data)
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]

    def close(self) -> None:
        """Let the file go; whatever is wrong with it, its bytes are gone."""
        self._file.close()
        if self._problem is not None:
            self._gathered.clear()
            self.path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises Problem when the file, all of it written, is empty, too large, no image, or not what was promised."""
        if self._problem is None and self.size < SNIFF_BYTES:
            self._check_format()
        if not self.size:
            raise Problem(ProblemCode.EMPTY_FILE, "The file has no bytes.")
        if self._problem is not None:
            raise self._problem
        self._promised.check("the file")

    def ready(self, sha256: str | None = None) -> SpooledFile:
        """Return the image, all of it written. Raises Problem: see `check`, or it is not that of this SHA-256."""
        self.check()
        if sha256 is not None and sha256 != self.sha256:
            raise mismatch("The SHA-256 of the file is not what the field `sha256` says.")
        return SpooledFile(self.path, self.size, self.sha256, sniff(self._head) or "", self.filename)

    def _check_format(self) -> None:
        if self.size and not self.is_archive and sniff(self._head) is None:
            detail = f"By its first bytes the file is none of: {', '.join(MEDIA_TYPES)}."
            self._refuse(Problem(ProblemCode.UNSUPPORTED_FORMAT, detail, headers=CLOSE if self._strict else {}))

    def _refuse(self, problem: Problem) -> None:
        if self._strict:
            raise problem
        self._problem = problem
        self._gathered.clear()


def too_large(max_bytes: int) -> Problem:
    """Return the refusal of a file that is too large."""
    return Problem(ProblemCode.FILE_TOO_LARGE, f"A file may have {max_bytes} bytes at most.", headers=CLOSE)


@contextlib.contextmanager
def spool_folder(settings: GatewaySettings) -> Iterator[Path]:
    """Yield a folder for what arrives; it is gone on exit. Raises Problem when there is no room for it."""
    with contextlib.ExitStack() as stack:
        with room(settings):
            folder = tempfile.TemporaryDirectory(prefix="darkroom-upload-", dir=settings.spool_dir)
            name = stack.enter_context(folder)
        yield Path(name)


@contextlib.contextmanager
def room(settings: GatewaySettings) -> Iterator[None]:
    """Turn an OSError of the gateway's own disk into a Problem (503)."""
    try:
        yield
    except OSError as error:
        _log.error("uploads cannot wait on disk", extra={"error": repr(error)})
        raise unavailable("The gateway's own disk", retry_after_s=settings.retry_after_s) from error


def clean_filename(name: str) -> str | None:
    """Return the last part of a client's file name without control characters: shown to people, never opened."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    with contextlib.suppress(ValueError):
        last = last.encode("utf-8", "ignore").decode()
    return "".join(letter for letter in last if letter.isprintable())[:255] or None
