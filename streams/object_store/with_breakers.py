"""A FileStore behind circuit breakers: after repeated failures calls are refused at once.

Writes (put, create, copy) have a breaker of their own, because a full disk can still be read. Removals belong to the
reads, since they free space.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

from schemas.values import ObjectRef
from streams.concurrency.circuit_breaker import Breakers
from streams.object_store.protocol import FileStore, ObjectInfo, PostForm

READS = "object-store"
WRITES = "object-store-writes"


class BreakingFiles:
    """A FileStore that raises DependencyUnavailable at once while a breaker is open, with the remaining seconds."""

    def __init__(self, inner: FileStore, breakers: Breakers) -> None:
        self.bucket = inner.bucket
        self._inner = inner
        self._reads = breakers.add(READS, self.check)
        self._writes = breakers.add(WRITES, self.check)

    async def put(self, key: str, data: bytes | Path, *, content_type: str, sha256: str | None = None) -> ObjectRef:
        with self._writes.passing():
            return await self._inner.put(key, data, content_type=content_type, sha256=sha256)

    async def create(self, key: str, data: bytes, *, content_type: str) -> bool:
        with self._writes.passing():
            return await self._inner.create(key, data, content_type=content_type)

    async def get(self, key: str, *, limit: int | None = None) -> bytes:
        with self._reads.passing():
            return await self._inner.get(key, limit=limit)

    def stream(self, key: str, *, start: int = 0, length: int | None = None) -> AsyncIterator[bytes]:
        return self._reads.steps(self._inner.stream(key, start=start, length=length))

    async def stat(self, key: str) -> ObjectInfo | None:
        with self._reads.passing():
            return await self._inner.stat(key)

    async def existing(self, keys: Collection[str]) -> set[str]:
        with self._reads.passing():
            return await self._inner.existing(keys)

    async def copy(self, source: str, target: str) -> None:
        with self._writes.passing():
            await self._inner.copy(source, target)

    async def delete(self, key: str) -> None:
        with self._reads.passing():
            await self._inner.delete(key)

    def list(self, prefix: str, *, after: str | None = None) -> AsyncIterator[ObjectInfo]:
        return self._reads.steps(self._inner.list(prefix, after=after))

    async def presign_get(
        self, key: str, *, expires_s: int, filename: str | None = None, inline: bool = False
    ) -> str | None:
        return await self._inner.presign_get(key, expires_s=expires_s, filename=filename, inline=inline)

    async def presign_post(
        self, key: str, *, content_type: str, min_bytes: int, max_bytes: int, expires_s: int
    ) -> PostForm | None:
        return await self._inner.presign_post(
            key, content_type=content_type, min_bytes=min_bytes, max_bytes=max_bytes, expires_s=expires_s
        )

    async def check(self) -> None:
        with self._reads.probing(), self._writes.probing():
            await self._inner.check()


@asynccontextmanager
async def open_breaking(store: AbstractAsyncContextManager[FileStore], breakers: Breakers) -> AsyncIterator[FileStore]:
    """Open a store behind breakers."""
    async with store as inner:
        try:
            yield BreakingFiles(inner, breakers)
        finally:
            breakers.remove(READS)
            breakers.remove(WRITES)
