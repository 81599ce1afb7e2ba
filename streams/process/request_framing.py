"""Framing of HTTP/1.1 requests checked more strictly than h11 does, so that no proxy in front reads other requests.

Refused are a Content-Length together with a Transfer-Encoding, a Transfer-Encoding in HTTP/1.0 (RFC 9112, 6.1), line
folding (5.2) and a line feed without a carriage return (2.2) in the head, and in the lines of a chunked body: chunk
sizes, chunk extensions and trailer fields (7.1).
"""

from __future__ import annotations

import re
from typing import Any

import h11

# The first match decides: the end of the head, or what a head must not contain. Data after the head is not searched.
_END_OR_INVALID = re.compile(rb"\r\n\r\n|(?P<fold>\n[ \t])|(?P<bare>(?<!\r)\n)")
_CHUNK_SIZE = re.compile(rb"[0-9A-Fa-f]{1,20}")
_FOLDED = "A header must not continue on a further line."
_BARE = "Lines of the head, chunk sizes and trailer fields must end with CR LF."
_AMBIGUOUS = "Send either Content-Length or Transfer-Encoding, and Transfer-Encoding only with HTTP/1.1."


class StrictConnection(h11.Connection):
    """A server's connection that refuses requests of ambiguous length. `refusal` is the reason, once it has."""

    def __init__(self, most_head_bytes: int) -> None:
        super().__init__(h11.SERVER, most_head_bytes)
        self.refusal: str | None = None
        self._checked = 0  # bytes of an incomplete head without a problem
        self._chunks: ChunkedLines | None = None  # while a chunked body is received
        self._body_problem: str | None = None

    def receive_data(self, data: bytes) -> None:
        """Take received bytes, as h11 does."""
        super().receive_data(data)
        self._check_chunks(data)

    def next_event(self) -> Any:
        """Return the next event, as h11 does. Raises RemoteProtocolError."""
        if self.their_state is h11.IDLE:
            data = self.trailing_data[0]
            self._refuse(head_problem(data, self._checked))
            self._checked = max(len(data) - 3, 0)  # the end of the head may have arrived in part
        self._refuse(self._body_problem)
        event = super().next_event()
        if event is not h11.NEED_DATA:
            self._checked = 0
        if isinstance(event, h11.Request):
            self._refuse(length_problem(event))
            if any(name == b"transfer-encoding" for name, _ in event.headers):
                self._chunks = ChunkedLines()
                self._check_chunks(self.trailing_data[0])
                self._refuse(self._body_problem)
        elif isinstance(event, h11.EndOfMessage):
            self._chunks = None
        return event

    def _check_chunks(self, data: bytes) -> None:
        if self._chunks is not None and self._body_problem is None:
            self._body_problem = self._chunks.problem(data)

    def _refuse(self, problem: str | None) -> None:
        if problem is not None:
            self.refusal = problem
            raise h11.RemoteProtocolError(problem)


class ChunkedLines:
    """Follows the lines of a chunked body (RFC 9112, 7.1) as its bytes arrive. h11 checks everything but their ends."""

    def __init__(self) -> None:
        self._line = bytearray()  # received of an incomplete line
        self._data_left = 0  # bytes of a chunk's data and the CR LF after it
        self._in_trailers = False
        self._ended = False

    def problem(self, data: bytes) -> str | None:
        """Return what is wrong with the lines in the next bytes, None if nothing. Bytes after the body are ignored."""
        at = 0
        while at < len(data) and not self._ended:
            if self._data_left:
                taken = min(self._data_left, len(data) - at)
                self._data_left -= taken
                at += taken
                continue
            end = data.find(b"\n", at) + 1 or len(data)
            self._line += data[at:end]
            at = end
            if self._line.endswith(b"\n"):
                line, self._line = bytes(self._line), bytearray()
                if (found := self._line_problem(line)) is not None:
                    return found
        return None

    def _line_problem(self, line: bytes) -> str | None:
        if not line.endswith(b"\r\n") or b"\r" in line[:-2]:
            return _BARE
        if self._in_trailers:
            self._ended = line == b"\r\n"
            return _FOLDED if line.startswith((b" ", b"\t")) else None
        size = _CHUNK_SIZE.match(line)
        if size is None or int(size[0], 16) == 0:
            self._in_trailers = True  # a line without a size is refused by h11
        else:
            self._data_left = int(size[0], 16) + len(b"\r\n")
        return None


def head_problem(data: bytes, start: int = 0) -> str | None:
    """Return what is wrong with the lines of a head, from `start`; None if nothing.

    The head may be incomplete, or have other data after it.
    """
    found = _END_OR_INVALID.search(data, start)
    if found is None or found.lastgroup is None:
        return None
    return _FOLDED if found.lastgroup == "fold" else _BARE


def length_problem(request: h11.Request) -> str | None:
    """Return what makes the length of a request's body ambiguous; None if nothing does."""
    names = {name for name, _ in request.headers}
    if b"transfer-encoding" in names and (b"content-length" in names or request.http_version < b"1.1"):
        return _AMBIGUOUS
    return None
