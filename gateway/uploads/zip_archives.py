"""Zip archives of images, treated as untrusted input.

Members are streamed into files with generated names, so a name in the archive cannot traverse paths. Before any member
is read, the declared total size must be within the limit and the layout strict: members in sequence, no overlapping
bytes, nothing before the first member and nothing after the end record. Bytes are counted while a member is read, as
declared sizes may be false. Nested archives are not opened.
"""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gateway.http.problems import Problem
from gateway.http.spooling import Arriving, SpooledFile, clean_filename
from gateway.settings import GatewaySettings
from schemas.http.problems import ProblemCode

_CHUNK = 256 * 1024
_ENTRIES_PER_FILE = 5  # leaves room for folders and file managers' metadata
_MAX_DIRECTORY_BYTES = 4 << 20  # central directory, read into memory
_SMALL = 1 << 20  # bytes: the compression ratio of smaller members is not limited
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP64_LOCATOR = 20  # bytes
_UNIX = 3
_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # others may expand without bound in one step
_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, RuntimeError, struct.error)
_ENCRYPTED = 0x1 | 0x40 | 0x2000


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str  # as in the archive: shown and compared, never used as a path
    info: zipfile.ZipInfo
    problem: Problem | None = None  # why this file is rejected

    @property
    def filename(self) -> str | None:
        """The last part of its name."""
        return clean_filename(self.name)


class Archive:
    """An open archive whose members may be read. Closed by `close`."""

    def __init__(self, path: Path, settings: GatewaySettings) -> None:
        """Open an archive. Raises Problem when it is invalid, unsupported or too large."""
        self._settings = settings
        with path.open("rb") as file:
            entries, table_at = _check_end(file, settings.max_batch_files * _ENTRIES_PER_FILE)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            raise _unreadable("Its central directory is damaged.") from error
        try:
            with path.open("rb") as file:
                _check_layout(file, self._zip.infolist(), entries, table_at)
            self.members = tuple(_member(info, settings) for info in self._zip.infolist() if _is_wanted(info))
            self._check_sizes()
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()

    def read(self, member: Member, path: Path) -> SpooledFile:
        """Extract a member to `path`. Blocks. Raises Problem when the member is rejected, and OSError."""
        if member.problem is not None:
            raise member.problem
        file = Arriving(path, member.filename, max_bytes=self._settings.max_upload_bytes, strict=False)
        try:
            with self._zip.open(member.info) as packed:
                while chunk := packed.read(_CHUNK):
                    file.take(chunk)
                    if file.refused:
                        break
                    file.write()
        except _DAMAGED as error:
            raise _rejected("The member is damaged.") from error
        finally:
            file.close()
        return file.ready()

    def _check_sizes(self) -> None:
        most, total = self._settings.max_batch_files, sum(member.info.file_size for member in self.members)
        if not self.members:
            raise _unreadable("It contains no files.")
        if len(self.members) > most:
            raise Problem(
                ProblemCode.TOO_MANY_FILES, f"The archive contains {len(self.members)} files; the limit is {most}."
            )
        if total > self._settings.max_batch_bytes:
            detail = f"The archive's files have {total} bytes together; the limit is {self._settings.max_batch_bytes}."
            raise Problem(ProblemCode.FILE_TOO_LARGE, detail)
        for member in self.members:
            packed, size = member.info.compress_size, member.info.file_size
            if size > _SMALL and size > packed * self._settings.max_archive_ratio:
                raise _unreadable("A member's compression ratio is higher than images allow.")


def _check_end(file: BinaryIO, most: int) -> tuple[int, int]:
    """Return the number of entries and the offset of the central directory.

    Raises Problem unless the directory is small, complete, and at the archive's end.
    """
    size = file.seek(0, os.SEEK_END)
    tail_at = max(0, size - _END.size - 0xFFFF - _ZIP64_LOCATOR)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _unreadable("It has no end record: it may be truncated.")
    _, disk, first_disk, here, entries, table_bytes, table_at, comment = _END.unpack_from(tail, at)
    if tail_at + at + _END.size + comment != size or disk or first_disk or here != entries:
        raise _unreadable("It is split, or has data after its end record.")
    if tail[at - _ZIP64_LOCATOR : at].startswith(b"PK\x06\x07") or table_at == 0xFFFFFFFF or entries == 0xFFFF:
        raise _unreadable("Zip64 is not supported.")
    if entries > most:
        raise Problem(ProblemCode.TOO_MANY_FILES, f"The archive contains {entries} entries; the limit is {most}.")
    if table_bytes > _MAX_DIRECTORY_BYTES or table_at + table_bytes != tail_at + at:
        raise _unreadable("It has data before its first member, or its central directory is too large.")
    return int(entries), int(table_at)


def _check_layout(file: BinaryIO, infos: list[zipfile.ZipInfo], entries: int, table_at: int) -> None:
    """Raise Problem when members overlap, or local headers contradict the central directory."""
    if len(infos) != entries:
        raise _unreadable("Its headers contradict each other.")
    free_from = 0
    for info in sorted(infos, key=lambda found: found.header_offset):
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
        if info.header_offset < free_from or len(header) < _LOCAL.size:
            raise _unreadable("Its members overlap.")
        if not free_from and info.header_offset:
            raise _unreadable("It has data before its first member.")
        magic, _, _, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
        if magic != b"PK\x03\x04" or method != info.compress_type:
            raise _unreadable("Its headers contradict each other.")
        free_from = info.header_offset + _LOCAL.size + name_bytes + extra_bytes + info.compress_size
    if free_from > table_at:
        raise _unreadable("Its members overlap.")


def _is_wanted(info: zipfile.ZipInfo) -> bool:
    """Return whether an entry is a file to process: not a folder, not file managers' metadata."""
    parts = info.filename.split("/")
    return not info.is_dir() and "__MACOSX" not in parts and parts[-1] not in (".DS_Store", "Thumbs.db", "desktop.ini")


def _member(info: zipfile.ZipInfo, settings: GatewaySettings) -> Member:
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    problem: Problem | None = None
    if info.flag_bits & _ENCRYPTED:
        problem = _rejected("The member is encrypted. Send it unencrypted.")
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        problem = _rejected("The member is a link or a device, not a regular file.")
    elif info.compress_type not in _METHODS:
        problem = _rejected("The member's compression method is not supported. Use deflate or none.")
    elif info.file_size > settings.max_upload_bytes:
        detail = f"The file is larger than the limit of {settings.max_upload_bytes} bytes."
        problem = Problem(ProblemCode.FILE_TOO_LARGE, detail)
    return Member(info.filename, info, problem)


def _rejected(detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_ARCHIVE, detail)


def _unreadable(detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_ARCHIVE, f"The archive was rejected. {detail}")
