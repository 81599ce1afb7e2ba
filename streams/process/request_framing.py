"""Framing of HTTP/1.1 requests checked more strictly than h11 does, so that no proxy in front reads other requests.

Refused are a Content-Length together with a Transfer-Encoding, a Transfer-Encoding in HTTP/1.0 (RFC 9112, 6.1), line
folding (5.2) and a line feed without a carriage return (2.2) in the head.
"""

from __future__ import annotations

import re
from typing import Any

import h11

# The first match decides: the end of the head, or what a head must not contain. Data after the head is not searched.
_END_OR_INVALID = re.compile(rb"\r\n\r\n|(?P<fold>\n[ \t])|(?P<bare>(?<!\r)\n)")
_FOLDED = "A header must not continue on a further line."
_BARE = "Lines of the head must end with CR LF."
_AMBIGUOUS = "Send either Content-Length or Transfer-Encoding, and Transfer-Encoding only with HTTP/1.1."


class StrictConnection(h11.Connection):
    """A server's connection that refuses requests of ambiguous length. `refusal` is the reason, once it has."""

    def __init__(self, most_head_bytes: int) -> None:
        super().__init__(h11.SERVER, most_head_bytes)
        self.refusal: str | None = None
        self._checked = 0  # bytes of an incomplete head without a problem

    def next_event(self) -> Any:
        """Return the next event, as h11 does. Raises RemoteProtocolError."""
        if self.their_state is h11.IDLE:
            data = self.trailing_data[0]
            self._refuse(head_problem(data, self._checked))
            self._checked = max(len(data) - 3, 0)  # the end of the head may have arrived in part
        event = super().next_event()
        if event is not h11.NEED_DATA:
            self._checked = 0
        if isinstance(event, h11.Request):
            self._refuse(length_problem(event))
        return event

    def _refuse(self, problem: str | None) -> None:
        if problem is not None:
            self.refusal = problem
            raise h11.RemoteProtocolError(problem)


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
