"""The body of one request of an upload in parts: received into files of a piece each.

What arrived is of use however the request ends: the last piece is as long as it was when the connection broke.
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
from gateway.http.spooling import room
from gateway.settings import GatewaySettings
from gateway.upload_sessions.leases import Lease, busy
from schemas.http.problems import ProblemCode

CLOSE = {"Connection": "close"}  # the rest of the body is not read
_BUFFER = 1 << 20  # bytes gathered before one write and hash in a thread


class Hash(Protocol):
    """A hash in progress, as of hashlib."""

    @property
    def digest_size(self) -> int: ...

    def update(self, data: bytes | bytearray, /) -> None: ...

    def digest(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an upload on this disk."""

    path: Path
    size: int

    def head(self, size: int) -> bytes:
        """Return its first bytes."""
        with self.path.open("rb") as file:
            return file.read(size)


@dataclass(slots=True)
class Body:
    """A request's body, to be read once, in pieces. `problem` says afterwards why it ended before its time."""

    request: Request
    settings: GatewaySettings
    lease: Lease
    folder: Path
    most: int  # bytes that may come
    digest: Hash | None = None
    problem: Problem | None = None
    came: int = 0  # bytes
    _gathered: bytearray = field(default_factory=bytearray)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Receive the pieces, each gone from this disk with the folder. Raises Problem when the disk is full."""
        body, ends = aiter(self.request.stream()), asyncio.get_running_loop().time() + self.settings.upload_total_s
        for number in count():
            path = self.folder / f"{number:06d}"
            with room(self.settings), path.open("wb", buffering=0) as file:
                size = await self._fill(file, body, ends)
            if size:
                yield Piece(path, size)
            if size < self.settings.piece_bytes:
                return

    async def _fill(self, file: IO[bytes], body: AsyncIterator[bytes], ends: float) -> int:
        """Receive one piece; return its size, which is less than a whole piece when nothing more comes."""
        size, whole = 0, self.settings.piece_bytes
        while size < whole:
            wanted = min(_BUFFER, whole - size)
            while len(self._gathered) < wanted:
                chunk = await self._next(body, ends)
                if chunk is None:
                    break
                self._gathered += chunk
            data = self._gathered[:wanted]
            del self._gathered[:wanted]
            await asyncio.to_thread(self._write, file, data)
            size += len(data)
            if len(data) < wanted:
                break
        return size

    def _write(self, file: IO[bytes], data: bytearray) -> None:
        if self.digest is not None:
            self.digest.update(data)
        view = memoryview(data)
        while view:
            view = view[file.write(view) :]

    async def _next(self, body: AsyncIterator[bytes], ends: float) -> bytes | None:
        try:
            left = ends - asyncio.get_running_loop().time()
            async with self.lease.waiting(min(self.settings.upload_idle_s, max(left, 0))):
                chunk = await anext(body, None)
        except TimeoutError:
            self.problem = busy() if self.lease.wanted else self._too_slow()
        except ClientDisconnect:
            detail = "The connection ended before the body did."
            self.problem = Problem(ProblemCode.BAD_REQUEST, detail, headers=CLOSE)
        else:
            self.came += len(chunk or b"")
            if self.came <= self.most:
                return chunk
            self.problem = Problem(ProblemCode.FILE_TOO_LARGE, "More came than there is to the file.", headers=CLOSE)
            self._gathered.clear()
        return None

    def _too_slow(self) -> Problem:
        idle, total = self.settings.upload_idle_s, self.settings.upload_total_s
        detail = f"No byte for {idle:g} s, or not whole after {total:g} s. Go on with another request."
        return Problem(ProblemCode.UPLOAD_TOO_SLOW, detail, headers=CLOSE)
