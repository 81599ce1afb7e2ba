"""Removes references and originals of uploads that were never accepted.

A gateway that crashed before its receipt leaves a reference that would keep an original permanently, and no client can
request its deletion. Two simultaneous refused uploads of the same bytes may leave an original without a reference. A
worker that crashed between adding a reference and checking for a deletion leaves a reference to an erased image.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import structlog

from agents.maintenance.object_scan import ObjectScan
from streams.object_store.original_references import has_other_references, withdraw
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.object_store.receipts import has_receipt
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel

log = structlog.get_logger(__name__)

CLAIMS, ORIGINALS = "claims/", "originals/"


@dataclass(slots=True)
class Abandoned:
    """Scans references and originals page by page; its only state is the cursors. Calls raise DependencyUnavailable."""

    files: FileStore
    read_model: ReadModel
    _references: ObjectScan = field(init=False)
    _originals: ObjectScan = field(init=False)
    _late: ObjectScan = field(init=False)  # a second scan of the references

    def __post_init__(self) -> None:
        self._references, self._late = ObjectScan(self.files, CLAIMS), ObjectScan(self.files, CLAIMS)
        self._originals = ObjectScan(self.files, ORIGINALS)

    def scans(self) -> dict[str, ObjectScan]:
        """Return the scans by name."""
        return {"references": self._references, "originals": self._originals, "late-references": self._late}

    async def remove(self, *, older_than: float, page_size: int, dry_run: bool) -> int:
        """Remove the orphans of the next page that are older than `older_than` (unix seconds); return their number.

        An original is removed with its last reference.
        """
        references = await self._orphans(await self._references.page(page_size), older_than, self._is_orphaned)
        originals = await self._orphans(await self._originals.page(page_size), older_than, self._is_unreferenced)
        if not dry_run:
            self._references.advance()
            self._originals.advance()
            for info in references:
                _, owner, sha256, image_id = info.key.split("/")
                await withdraw(self.files, owner, sha256, image_id)
            for info in originals:
                if await self._is_unreferenced(info):
                    await self.files.delete(info.key)
        return len(references) + len(originals)

    async def note_late_references(self, *, page_size: int, dry_run: bool) -> int:
        """Note the originals that erased images still reference, for another removal; return their number."""
        erasures, late = Tombstones(self.files), 0
        for info in await self._late.page(page_size):
            parts = info.key.split("/")
            erasure = await erasures.get(parts[3]) if len(parts) == 4 else None
            if erasure is None or erasure.finished_at is None or erasure.owner != parts[1]:
                continue
            late += 1
            if not dry_run:
                await erasures.note(erasure.image_id, {parts[2]})
        if not dry_run:
            self._late.advance()
        return late

    async def _orphans(
        self, page: list[ObjectInfo], older_than: float, condition: Callable[[ObjectInfo], Awaitable[bool]]
    ) -> list[ObjectInfo]:
        found = [info for info in page if info.modified <= older_than and await condition(info)]
        if len(found) > len(page) - len(found) + 1:
            # As with objects: more orphans than known images suggest another installation's read model.
            log.error("more orphaned uploads than known ones; wrong read model? Removal skipped", first=found[0].key)
            return []
        if found:
            log.warning("orphaned references or originals", count=len(found), first=found[0].key)
        return found

    async def _is_unreferenced(self, info: ObjectInfo) -> bool:
        parts = info.key.split("/")
        if len(parts) != 4 or await has_other_references(self.files, parts[1], parts[3], ""):
            return False
        return await self.read_model.uses_of(parts[1], parts[3]) == 0

    async def _is_orphaned(self, info: ObjectInfo) -> bool:
        parts = info.key.split("/")
        return len(parts) == 4 and not await self._is_known(parts[3])

    async def _is_known(self, image_id: str) -> bool:
        if await self.read_model.get(image_id) is not None or await Tombstones(self.files).get(image_id) is not None:
            return True
        return await has_receipt(self.files, image_id)
