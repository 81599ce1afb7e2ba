"""Digests: what arrived is what was sent. Content-Digest and Repr-Digest of RFC 9530, of a body or a form's part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import http_sf
from fastapi import Request

from gateway.http.problems import Problem
from schemas.http.problems import ProblemCode

ALGORITHMS = {"sha-256": "sha256", "sha-512": "sha512"}
"""By their names in RFC 9530: how hashlib calls those that are checked here."""

WANTED = {"Want-Content-Digest": "sha-256=10, sha-512=5"}
DIGEST_FIELDS = ("content-digest", "repr-digest")  # no content coding is taken: the two say the same

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
    """Digests that were promised, computed as the bytes arrive."""

    def __init__(self, fields: Iterable[str] = ()) -> None:
        """Take the values of digest fields. Raises Problem: one cannot be read, or has only unknown algorithms."""
        self._promised = [found for text in fields for found in _read(text)]
        self._found = {name: hashlib.new(ALGORITHMS[name]) for name, _ in self._promised}

    def __bool__(self) -> bool:
        """Say whether anything was promised."""
        return bool(self._promised)

    def update(self, data: bytes | bytearray | memoryview) -> None:
        """Take the next bytes."""
        for digest in self._found.values():
            digest.update(data)

    def check(self, what: str) -> None:
        """Raises Problem when the bytes are not what was promised."""
        for name, promised in self._promised:
            if self._found[name].digest() != promised:
                raise mismatch(f"The {name} of {what} is not what its digest says.")


def promised_of(request: Request) -> DigestCheck:
    """Return the check of a whole body. Raises Problem: see DigestCheck."""
    return DigestCheck(value for name in DIGEST_FIELDS for value in request.headers.getlist(name))


def mismatch(detail: str) -> Problem:
    """Return the refusal of bytes that are not those that were promised."""
    return Problem(ProblemCode.DIGEST_MISMATCH, f"{detail} Send it again.", headers=WANTED)


def _read(text: str) -> list[tuple[str, bytes]]:
    try:
        given = http_sf.parse(text.encode("latin-1"), tltype="dictionary")
    except ValueError:
        raise _unreadable("It is no dictionary of byte sequences, such as sha-256=:…:.") from None
    known = []
    for name, item in given.items() if isinstance(given, dict) else ():
        value = item[0] if isinstance(item, tuple) else None
        if name not in ALGORITHMS:
            continue
        if not isinstance(value, bytes) or len(value) != hashlib.new(ALGORITHMS[name]).digest_size:
            raise _unreadable(f"{name} is not a digest of that algorithm.")
        known.append((name, value))
    if not known:
        raise _unreadable(f"None of its algorithms is one of: {', '.join(ALGORITHMS)}.")
    return known


def _unreadable(detail: str) -> Problem:
    return Problem(ProblemCode.INVALID_DIGEST, f"The digest cannot be checked. {detail}", headers=WANTED)
