"""Zip archives of images, opened with care: nothing is unpacked to a path, and nothing is believed.

A member is read as a stream into a file whose name is ours, so no name in the archive can lead anywhere. Before any
member is read, the archive must say that all of them together are small enough, and be laid out as honest writers do:
one member after the other, no bytes used twice, nothing before the first and nothing behind the end. While a member is
read its bytes are counted all the same. What is in an archive is never opened as an archive.
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
_ENTRIES_PER_FILE = 5  # folders, and what file managers leave, beside each image
_MAX_DIRECTORY_BYTES = 4 << 20  # of the table at the archive's end, which is read into memory
_SMALL = 1 << 20  # bytes: what is smaller may be packed as tightly as it likes
_END = struct.Struct("<4s4H2LH")
_LOCAL = struct.Struct("<4s5H3L2H")
_ZIP64_LOCATOR = 20  # bytes
_UNIX = 3
_TAKEN = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}  # the others may make much of little in one step
_DAMAGED = (zipfile.BadZipFile, zlib.error, NotImplementedError, EOFError, ValueError, RuntimeError, struct.error)
_ENCRYPTED = 0x1 | 0x40 | 0x2000


@dataclass(frozen=True, slots=True)
class Member:
    """One file of an archive."""

    name: str  # as the archive says, to be shown or compared, never opened
    info: zipfile.ZipInfo
    problem: Problem | None = None  # why this file is not taken

    @property
    def filename(self) -> str | None:
        """The last part of its name."""
        return clean_filename(self.name)


class Archive:
    """An open archive whose members may be read. Closed by `close`."""

    def __init__(self, path: Path, settings: GatewaySettings) -> None:
        """Open an archive. Raises Problem when it is none that is opened here."""
        self._settings = settings
        with path.open("rb") as file:
            entries, table_at = _check_end(file, settings.max_batch_files * _ENTRIES_PER_FILE)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error) as error:
            raise _unreadable("Its table of contents cannot be read.") from error
        try:
            with path.open("rb") as file:
                _check_layout(file, self._zip.infolist(), entries, table_at)
            self.members = tuple(_member(info, settings) for info in self._zip.infolist() if _is_wanted(info))
            self._check_sizes()
        except BaseException:
            self._zip.close()
            raise

    def close(self) -> None:
        """Let the archive go."""
        self._zip.close()

    def read(self, member: Member, path: Path) -> SpooledFile:
        """Write a member to a path of ours. Blocks. Raises Problem when it is not taken, and OSError."""
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
            raise _refused("It cannot be unpacked.") from error
        finally:
            file.close()
        return file.ready()

    def _check_sizes(self) -> None:
        most, total = self._settings.max_batch_files, sum(member.info.file_size for member in self.members)
        if not self.members:
            raise _unreadable("It has no files.")
        if len(self.members) > most:
            raise Problem(ProblemCode.TOO_MANY_FILES, f"An archive may have {most} files at most.")
        if total > self._settings.max_batch_bytes:
            detail = f"The files of an archive may have {self._settings.max_batch_bytes} bytes together."
            raise Problem(ProblemCode.FILE_TOO_LARGE, detail)
        for member in self.members:
            packed, size = member.info.compress_size, member.info.file_size
            if size > _SMALL and size > packed * self._settings.max_archive_ratio:
                raise _unreadable("A file in it is packed more tightly than images can be.")


def _check_end(file: BinaryIO, most: int) -> tuple[int, int]:
    """Return how many entries there are, and where their table begins.

    Raises Problem unless the table is small, whole, and the archive's end.
    """
    size = file.seek(0, os.SEEK_END)
    tail_at = max(0, size - _END.size - 0xFFFF - _ZIP64_LOCATOR)
    file.seek(tail_at)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        raise _unreadable("It has no end: perhaps it is not whole.")
    _, disk, first_disk, here, entries, table_bytes, table_at, comment = _END.unpack_from(tail, at)
    if tail_at + at + _END.size + comment != size or disk or first_disk or here != entries:
        raise _unreadable("It is in several parts, or something comes after it.")
    if tail[at - _ZIP64_LOCATOR : at].startswith(b"PK\x06\x07") or table_at == 0xFFFFFFFF or entries == 0xFFFF:
        raise _unreadable("It is a Zip64 archive.")
    if entries > most:
        raise Problem(ProblemCode.TOO_MANY_FILES, f"An archive may have {most} entries at most.")
    if table_bytes > _MAX_DIRECTORY_BYTES or table_at + table_bytes != tail_at + at:
        raise _unreadable("Something comes before it, or its table of contents is too large.")
    return int(entries), int(table_at)


def _check_layout(file: BinaryIO, infos: list[zipfile.ZipInfo], entries: int, table_at: int) -> None:
    """Raises Problem when members share bytes, or the archive says one thing at its end and another before a member."""
    if len(infos) != entries:
        raise _unreadable("It contradicts itself.")
    free_from = 0
    for info in sorted(infos, key=lambda found: found.header_offset):
        file.seek(info.header_offset)
        header = file.read(_LOCAL.size)
        if info.header_offset < free_from or len(header) < _LOCAL.size:
            raise _unreadable("Files in it share the same bytes.")
        if not free_from and info.header_offset:
            raise _unreadable("Something comes before it.")
        magic, _, _, method, _, _, _, _, _, name_bytes, extra_bytes = _LOCAL.unpack(header)
        if magic != b"PK\x03\x04" or method != info.compress_type:
            raise _unreadable("It contradicts itself.")
        free_from = info.header_offset + _LOCAL.size + name_bytes + extra_bytes + info.compress_size
    if free_from > table_at:
        raise _unreadable("Files in it share the same bytes.")


def _is_wanted(info: zipfile.ZipInfo) -> bool:
    """Say whether an entry is a file somebody meant to send: no folder, nothing a file manager left."""
    parts = info.filename.split("/")
    return not info.is_dir() and "__MACOSX" not in parts and parts[-1] not in (".DS_Store", "Thumbs.db", "desktop.ini")


def _member(info: zipfile.ZipInfo, settings: GatewaySettings) -> Member:
    mode = info.external_attr >> 16 if info.create_system == _UNIX else 0
    problem: Problem | None = None
    if info.flag_bits & _ENCRYPTED:
        problem = _refused("It is encrypted.")
    elif stat.S_IFMT(mode) not in (0, stat.S_IFREG):
        problem = _refused("It is a link or a device, not a file.")
    elif info.compress_type not in _TAKEN:
        problem = _refused("It is packed by another method than deflate.")
    elif info.file_size > settings.max_upload_bytes:
        detail = f"A file may have {settings.max_upload_bytes} bytes at most."
        problem = Problem(ProblemCode.FILE_TOO_LARGE, detail)
    return Member(info.filename, info, problem)


def _refused(detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_ARCHIVE, detail)


def _unreadable(detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_ARCHIVE, f"The archive is not opened. {detail}")
