"""A walk through stored objects, a page per sweep: what is too much to look at in one sweep is looked at in several."""

from __future__ import annotations

from dataclasses import dataclass

from streams.object_store.protocol import FileStore, ObjectInfo


@dataclass(slots=True)
class ObjectScan:
    """Goes through the objects under a prefix and, at their end, begins anew; keeps only where it stands."""

    files: FileStore
    prefix: str
    _after: str | None = None
    _next: str | None = None

    async def page(self, size: int) -> list[ObjectInfo]:
        """Return the page it stands at: again and again, until it goes on. Raises DependencyUnavailable."""
        page: list[ObjectInfo] = []
        async for info in self.files.list(self.prefix, after=self._after):
            page.append(info)
            if len(page) == size:
                break
        self._next = page[-1].key if len(page) == size else None
        return page

    def go_on(self) -> None:
        """Go on behind the page that was returned: what there was to do on it is done."""
        self._after = self._next
