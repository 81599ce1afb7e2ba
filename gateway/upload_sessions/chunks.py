"""Receives the body of a tus request into one spool file per piece.

Received bytes are kept however the request ends: the last piece has the length received before the connection closed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Protocol

from fastapi import Request
from starlette.requests import ClientDisconnect

from gateway.http.problems import Problem
from gateway.http.spool_space import SPACE
from gateway.http.spooling import room
from gateway.settings import GatewaySettings
from gateway.upload_sessions.leases import Lease, busy
from schemas.http.problems import ProblemCode

CLOSE = {"Connection": "close"}  # the rest of the body is not read
_BUFFER = 1 << 20  # bytes buffered before one write and hash in a thread


class Hash(Protocol):
    """A hash in progress, as of hashlib."""

    @property
    def digest_size(self) -> int: ...

    def update(self, data: bytes | bytearray, /) -> None: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an upload in the spool folder."""

    path: Path
    size: int

    def head(self, size: int) -> bytes:
        """Return its first bytes."""
        with self.path.open("rb") as file:
            return file.read(size)


@dataclass(slots=True)
class Body:
    """A request's body, to be read once, in pieces. After that `problem` is why it ended early, or None."""

    request: Request
    settings: GatewaySettings
    lease: Lease
    folder: Path
    most: int  # bytes; a longer body is rejected
    digest: Hash | None = None
    problem: Problem | None = None
    received: int = 0  # bytes
    _buffered: bytearray = field(default_factory=bytearray)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Receive the pieces, as files in the spool folder. Raises Problem when the disk is full."""
        body, ends = aiter(self.request.stream()), asyncio.get_running_loop().time() + self.settings.upload_total_s
        for number in count():
            path = self.folder / f"{number:06d}"
            with room(self.settings), path.open("wb", buffering=0) as file:
                size = await self._fill(path, file, body, ends)
            if size:
                yield Piece(path, size)
            if size < self.settings.piece_bytes:
                return

    async def _fill(self, path: Path, file: IO[bytes], body: AsyncIterator[bytes], ends: float) -> int:
        """Receive one piece; return its size, which is less than `piece_bytes` at the end of the body."""
        size, whole = 0, self.settings.piece_bytes
        while size < whole:
            wanted = min(_BUFFER, whole - size)
            while len(self._buffered) < wanted:
                chunk = await self._next(body, ends)
                if chunk is None:
                    break
                self._buffered += chunk
            data = self._buffered[:wanted]
            del self._buffered[:wanted]
            await asyncio.to_thread(self._write, path, file, data)
            size += len(data)
            if len(data) < wanted:
                break
        return size

    def _write(self, path: Path, file: IO[bytes], data: bytearray) -> None:
        SPACE.grow(path, len(data))
        if self.digest is not None:
            self.digest.update(data)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    async def _next(self, body: AsyncIterator[bytes], ends: float) -> bytes | None:
        try:
            left = ends - asyncio.get_running_loop().time()
            async with self.lease.client_read(min(self.settings.upload_idle_s, max(left, 0))):
                chunk = await anext(body, None)
        except TimeoutError:
            self.problem = busy() if self.lease.preempted else self._too_slow()
        except ClientDisconnect:
            detail = "The connection closed before the end of the body."
            self.problem = Problem(ProblemCode.BAD_REQUEST, detail, headers=CLOSE)
        else:
            self.received += len(chunk or b"")
            if self.received <= self.most:
                return chunk
            detail = f"The body is larger than the {self.most} bytes that the file still lacks."
            self.problem = Problem(ProblemCode.FILE_TOO_LARGE, detail, headers=CLOSE)
            self._buffered.clear()
        return None

    def _too_slow(self) -> Problem:
        idle, total = self.settings.upload_idle_s, self.settings.upload_total_s
        detail = f"No data for {idle:g} s, or an incomplete body after {total:g} s. Continue with another request."
        return Problem(ProblemCode.UPLOAD_TOO_SLOW, detail, headers=CLOSE)
