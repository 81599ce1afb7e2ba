"""Digest checks of bodies and form parts: Content-Digest and Repr-Digest (RFC 9530)."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import http_sf
from fastapi import Request

from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode

ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}
"""Checked algorithms: name in RFC 9530 -> name in hashlib."""

WANTED = {"Want-Content-Digest": "sha-256=10, sha-512=5"}
DIGEST_FIELDS = ("content-digest", "repr-digest")  # equal here, since content codings are not accepted

DIGEST_PARAMETER: dict[str, Any] = {
    "name": "Content-Digest",
    "in": "header",
    "required": False,
    "description": (
        "The body is checked against it (RFC 9530; sha-256 and sha-512), `Repr-Digest` likewise. A part of a form may "
        "have a header of its own."
    ),
    "schema": {"type": "string"},
    "example": "sha-256=:X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE=:",
}
"""How OpenAPI describes the header."""


class DigestCheck:
    """The declared digests of a body, computed as the bytes arrive."""

    def __init__(self, fields: Iterable[str] = ()) -> None:
        """Parse the values of digest fields. Raises Problem: unreadable, or only unknown algorithms."""
        self._declared = [found for text in fields for found in _read(text)]
        self._computed = {name: hashlib.new(ALGORITHMS[name]) for name, _ in self._declared}

    def __bool__(self) -> bool:
        """Return whether any digest was declared."""
        return bool(self._declared)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Add the next bytes."""
        for digest in self._computed.values():
            digest.update(data)

    def check(self, what: str) -> None:
        """Raise Problem if the bytes do not match a declared digest."""
        for name, declared in self._declared:
            if self._computed[name].digest() != declared:
                raise mismatch(f"The {name} of {what} does not match its digest.")


def declared_digests(request: Request) -> DigestCheck:
    """Return the check of a body against its headers. Raises Problem: see DigestCheck."""
    return DigestCheck(value for name in DIGEST_FIELDS for value in request.headers.getlist(name))


def mismatch(detail: str) -> Problem:
    """Return the error of bytes that do not match their digest."""
    return Problem(ProblemCode.DIGEST_MISMATCH, f"{detail} Send it again.", headers=WANTED)


def _read(text: str) -> list[tuple[str, bytes]]:
    try:
        given = http_sf.parse(text.encode("latin-1"), tltype="dictionary")
    except ValueError:
        raise _unreadable("Send a dictionary of byte sequences, for example sha-256=:…:.") from None
    known = []
    for name, item in given.items() if isinstance(given, dict) else ():
        value = item[0] if isinstance(item, tuple) else None
        if name not in ALGORITHMS:
            continue
        if not isinstance(value, bytes) or len(value) != hashlib.new(ALGORITHMS[name]).digest_size:
            raise _unreadable(f"The value of {name} has the wrong length or type.")
        known.append((name, value))
    if not known:
        raise _unreadable(f"Supported algorithms: {', '.join(ALGORITHMS)}.")
    return known


def _unreadable(detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_DIGEST, f"The digest cannot be checked. {detail}", headers=WANTED)
