"""What uploads that were never accepted left: claims of a gateway that died before its receipt, and their originals.

Such a claim would keep an original for ever, and nobody could ask to delete it. Nor is there anybody for an original
that nobody claims: of two uploads of the same bytes at once, both refused, each may have left it to the other.
And what a worker left that died between its claim and its look whether the image is deleted.
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
    """Walks claims and originals, a page at a time; keeps only where it stands. Calls raise DependencyUnavailable."""

    files: FileStore
    read_model: ReadModel
    _claims: ObjectScan = field(init=False)
    _originals: ObjectScan = field(init=False)
    _late: ObjectScan = field(init=False)  # a walk of its own over the claims

    def __post_init__(self) -> None:
        self._claims, self._late = ObjectScan(self.files, CLAIMS), ObjectScan(self.files, CLAIMS)
        self._originals = ObjectScan(self.files, ORIGINALS)

    async def remove(self, *, older_than: float, page_size: int, dry_run: bool) -> int:
        """Remove what the next page has of it, made before `older_than` (unix seconds); return how many there were.

        An original goes with its last claim.
        """
        claims = await self._those(await self._claims.page(page_size), older_than, self._is_abandoned)
        originals = await self._those(await self._originals.page(page_size), older_than, self._is_nobodys)
        if not dry_run:
            self._claims.go_on()
            self._originals.go_on()
            for info in claims:
                _, owner, sha256, image_id = info.key.split("/")
                await withdraw(self.files, owner, sha256, image_id)
            for info in originals:
                if await self._is_nobodys(info):
                    await self.files.delete(info.key)
        return len(claims) + len(originals)

    async def note_late_claims(self, *, page_size: int, dry_run: bool) -> int:
        """Have the next page's claims of images long erased looked after once more; return how many there were."""
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
            self._late.go_on()
        return late

    async def _those(
        self, page: list[ObjectInfo], older_than: float, condition: Callable[[ObjectInfo], Awaitable[bool]]
    ) -> list[ObjectInfo]:
        found = [info for info in page if info.modified <= older_than and await condition(info)]
        if len(found) > len(page) - len(found) + 1:
            # As with objects: more strangers than images means that it is the read model that knows too little.
            log.error("most belong to no image: is this the right read model? None is removed", first=found[0].key)
            return []
        if found:
            log.warning("uploads that were never accepted left objects", count=len(found), first=found[0].key)
        return found

    async def _is_nobodys(self, info: ObjectInfo) -> bool:
        parts = info.key.split("/")
        if len(parts) != 4 or await has_other_references(self.files, parts[1], parts[3], ""):
            return False
        return await self.read_model.uses_of(parts[1], parts[3]) == 0

    async def _is_abandoned(self, info: ObjectInfo) -> bool:
        parts = info.key.split("/")
        return len(parts) == 4 and not await self._is_known(parts[3])

    async def _is_known(self, image_id: str) -> bool:
        if await self.read_model.get(image_id) is not None or await Tombstones(self.files).get(image_id) is not None:
            return True
        return await has_receipt(self.files, image_id)
