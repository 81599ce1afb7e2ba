"""Multipart forms parsed as a stream: text fields stay in memory, files go to disk (gateway.http.spooling)."""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

from python_multipart.multipart import parse_options_header

from gateway.http.digests import DIGEST_FIELDS, DigestCheck
from gateway.http.problems import Problem, unknown_fields
from gateway.http.spooling import BUFFER, CLOSE, Arriving, clean_filename
from schemas.http.problems import ProblemCode

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

# The first alternative consumes quoted strings, so that a file's name cannot contain a parameter.
_EXTENDED_FILENAME = re.compile(rb'"(?:[^"\\]|\\.?)*(?:"|$)|;[ \t]*filename\*[ \t]*=[ \t]*"?([^\s;"]*)', re.I | re.S)
_CHARSETS = {b"utf-8": "utf-8", b"iso-8859-1": "latin-1"}  # those of RFC 8187 and its predecessor
_OVERHEAD = 64 * 1024  # bytes allowed beside each file: metadata, part headers, boundaries


@dataclass(frozen=True, slots=True)
class Rules:
    """The limits of a form."""

    allowed: frozenset[str]  # text fields
    max_bytes: int  # of one file
    max_field_bytes: int
    names: frozenset[str] = frozenset({"file"})  # of the fields that are files
    max_files: int = 1
    max_total_bytes: int | None = None  # of all files together; None: max_bytes
    max_archive_bytes: int = 0  # of a zip archive instead of a file; 0: not accepted

    @property
    def total(self) -> int:
        """The maximum bytes of all files together."""
        return self.max_total_bytes or self.max_bytes

    @property
    def strict(self) -> bool:
        """Whether an invalid file makes the request invalid: there can be only one."""
        return self.max_files == 1

    @property
    def body(self) -> int:
        """The maximum bytes of the whole body."""
        return self.total + self.max_files * _OVERHEAD


@dataclass(slots=True)
class _Part:
    name: str | None = None
    filename: str | None = None
    is_file: bool = False
    digests: list[str] = field(default_factory=list)
    file: Arriving | None = None
    text: bytearray = field(default_factory=bytearray)


class FormReader:
    """Receives the parser's callbacks, which only buffer on the loop; `settle` writes and hashes in a thread."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self._folder = folder
        self._rules = rules
        self.fields: dict[str, str] = {}
        self._files: list[Arriving] = []
        self._settled = 0  # files written and closed
        self._part = _Part()
        self._header: tuple[bytearray, bytearray] = (bytearray(), bytearray())
        self._ended = False

    def callbacks(self) -> MultipartCallbacks:
        """Return the callbacks for MultipartParser."""
        return {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._header[0].extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._header[1].extend(data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_data,
            "on_part_data": self._take_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }

    async def settle(self, *, last: bool = False) -> None:
        """Write the buffers, if they are large enough or a file or the form has ended."""
        pending = self._files[self._settled :]
        ended = sum(file.ended for file in pending)
        if last or ended > 1 or sum(file.buffered for file in pending) >= BUFFER:
            await asyncio.to_thread(self._write, pending)
            self._settled += ended

    def close(self) -> None:
        """Close all files."""
        for file in self._files[self._settled :]:
            file.close()

    def finished(self) -> tuple[Arriving, ...]:
        """Return the files of a complete form. Raises Problem: incomplete, or without a file."""
        if not self._ended:
            raise Problem(ProblemCode.BAD_REQUEST, "The form ends before its closing boundary.")
        if not self._files:
            raise Problem(ProblemCode.MISSING_FILE, "Send the image as the form field `file`, with a file name.")
        return tuple(self._files)

    def _write(self, files: list[Arriving]) -> None:
        for file in files:
            file.write()
            if file.ended:
                file.close()

    def _begin_part(self) -> None:
        self._part = _Part()

    def _end_header(self) -> None:
        name, value = bytes(self._header[0]).lower(), bytes(self._header[1])
        self._header = (bytearray(), bytearray())
        if name.decode("latin-1") in DIGEST_FIELDS:
            self._part.digests.append(value.decode("latin-1"))
        if name != b"content-disposition":
            return
        _, options = parse_options_header(value)
        if b"name" in options:
            self._part.name = options[b"name"].decode("utf-8", "replace")
        filename = _extended_filename(value)
        if not filename and b"filename" in options:
            filename = options[b"filename"].decode("utf-8", "replace")
        if filename is not None:
            self._part.filename = clean_filename(filename)
            self._part.is_file = True

    def _begin_data(self) -> None:
        part, rules = self._part, self._rules
        if part.name is None:
            raise Problem(ProblemCode.BAD_REQUEST, "A part of the form has no name.", headers=CLOSE)
        if part.name in rules.names:
            self._begin_file(part)
        elif part.name not in rules.allowed:
            raise unknown_fields("field", [part.name], {*rules.names, *rules.allowed}, headers=CLOSE)
        elif part.name in self.fields:
            raise Problem(ProblemCode.BAD_REQUEST, f"The field `{part.name}` is repeated.", headers=CLOSE)

    def _begin_file(self, part: _Part) -> None:
        rules = self._rules
        if not part.is_file:
            raise Problem(ProblemCode.MISSING_FILE, f"The field `{part.name}` must have a file name.", headers=CLOSE)
        if len(self._files) == rules.max_files:
            if rules.max_files == 1:
                raise Problem(ProblemCode.BAD_REQUEST, "Send one file per request.", headers=CLOSE)
            detail = f"Send {rules.max_files} files at most."
            raise Problem(ProblemCode.TOO_MANY_FILES, detail, headers=CLOSE)
        part.file = Arriving(
            self._folder / str(len(self._files)),
            part.filename,
            max_bytes=rules.max_bytes,
            strict=rules.strict,
            declared=DigestCheck(part.digests),
            max_archive_bytes=rules.max_archive_bytes,
        )
        self._files.append(part.file)

    def _take_data(self, data: bytes, start: int, end: int) -> None:
        if self._part.file is not None:
            self._part.file.take(memoryview(data)[start:end])
            return
        self._part.text.extend(data[start:end])
        if len(self._part.text) > self._rules.max_field_bytes:
            code = ProblemCode.INVALID_METADATA if self._part.name == "metadata" else ProblemCode.BAD_REQUEST
            detail = f"The field `{self._part.name}` may have {self._rules.max_field_bytes} bytes at most."
            raise Problem(code, detail, headers=CLOSE)

    def _end_part(self) -> None:
        if self._part.file is not None:
            self._part.file.ended = True
        elif self._part.name is not None:
            try:
                self.fields[self._part.name] = self._part.text.decode()
            except UnicodeDecodeError:
                detail = f"The field `{self._part.name}` is not UTF-8."
                raise Problem(ProblemCode.BAD_REQUEST, detail, headers=CLOSE) from None

    def _end(self) -> None:
        self._ended = True


def _extended_filename(disposition: bytes) -> str | None:
    """Return `filename*` of a Content-Disposition (RFC 8187), None without it; "" if it cannot be decoded.

    RFC 7578 forbids it in forms, so the parser skips it; some clients send it, with or without `filename`.
    """
    for found in _EXTENDED_FILENAME.finditer(disposition):
        if found[1] is not None:
            charset, _, rest = found[1].partition(b"'")
            codec = _CHARSETS.get(charset.lower())
            return unquote_to_bytes(rest.partition(b"'")[2]).decode(codec, "replace") if codec else ""
    return None
