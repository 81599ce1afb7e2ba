"""Scans stored objects one page per sweep, so that a sweep's cost is bounded."""

from __future__ import annotations

from dataclasses import dataclass

from streams.object_store.protocol import FileStore, ObjectInfo


@dataclass(slots=True)
class ObjectScan:
    """Pages through the objects under a prefix and starts over at their end; its only state is the position."""

    files: FileStore
    prefix: str
    position: str | None = None  # the last key of the previous page; None at the beginning
    _next: str | None = None

    async def page(self, size: int) -> list[ObjectInfo]:
        """Return the current page, the same one until `advance`. Raises DependencyUnavailable."""
        page: list[ObjectInfo] = []
        async for info in self.files.list(self.prefix, after=self.position):
            page.append(info)
            if len(page) == size:
                break
        self._next = page[-1].key if len(page) == size else None
        return page

    def advance(self) -> None:
        """Move to the next page: the returned one is processed."""
        self.position = self._next
