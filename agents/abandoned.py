"""Claims of uploads that were never accepted: what a gateway left that died between its claim and its receipt.

Such a claim would keep an original for ever, and nobody could ask to delete it.
"""

from __future__ import annotations

from dataclasses import dataclass

import structlog

from streams.erasures import Erasures
from streams.files import FileStore, ObjectInfo
from streams.originals import withdraw
from streams.vectors import ReadModel

log = structlog.get_logger(__name__)

_ROOT = "claims/"


@dataclass(slots=True)
class Claims:
    """Walks all claims, a page at a time. Keeps, between pages, only where it stands. Calls raise DependencyAway."""

    files: FileStore
    vectors: ReadModel
    _after: str | None = None

    async def withdraw_abandoned(self, *, older_than: float, page_size: int, dry_run: bool) -> int:
        """Take back the next page's claims, made before `older_than` (unix seconds), of images nobody knows.

        Return how many there are. An original goes with its last claim.
        """
        page: list[ObjectInfo] = []
        async for info in self.files.list(_ROOT, after=self._after):
            page.append(info)
            if len(page) == page_size:
                break
        abandoned = [info for info in page if info.modified <= older_than and not await self._is_known(_image_of(info))]
        if len(abandoned) > len(page) - len(abandoned) + 1:
            # As with objects: more strangers than images means that it is the read model that knows too little.
            log.error("most claims belong to no image: is this the right read model? None is taken back")
            abandoned = []
        if abandoned:
            log.warning("uploads that were never accepted left claims", count=len(abandoned), first=abandoned[0].key)
        if not dry_run:
            for info in abandoned:
                _, owner, sha256, image_id = info.key.split("/")
                await withdraw(self.files, owner, sha256, image_id)
            self._after = page[-1].key if len(page) == page_size else None
        return len(abandoned)

    async def _is_known(self, image_id: str) -> bool:
        if await self.vectors.get(image_id) is not None or await Erasures(self.files).get(image_id) is not None:
            return True
        async for _ in self.files.list(f"jobs/{image_id}."):
            return True
        return False


def _image_of(info: ObjectInfo) -> str:
    """Return the image a claim names; a key of another form names none, and is nobody's to remove."""
    parts = info.key.split("/")
    return parts[3] if len(parts) == 4 else ""
