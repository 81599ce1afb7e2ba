"""Removes the marks of deletions that are done, superseded or were never accepted.

A request reads records before marks. A mark therefore outlives the record by KEPT_S: without it, a request that read
the record just before its removal would show an image whose deletion had been accepted.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import structlog

from agents.maintenance.object_scan import ObjectScan
from schemas.stored.receipts import ReceiptKind
from schemas.values import job_id_of
from streams.object_store.pending_deletions import DELETIONS, KEPT_S, PendingDeletions, marked_image
from streams.object_store.protocol import FileStore, ObjectInfo
from streams.object_store.receipts import read_receipt
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class EndedDeletions:
    """Scans marks page by page; its only state is the cursor. Calls raise DependencyUnavailable."""

    files: FileStore
    read_model: ReadModel
    _scan: ObjectScan = field(init=False)

    def __post_init__(self) -> None:
        self._scan = ObjectScan(self.files, DELETIONS)

    def scans(self) -> dict[str, ObjectScan]:
        """Return the scan by its prefix."""
        return {DELETIONS: self._scan}

    async def remove(self, *, now: float, horizon_s: float, page_size: int, dry_run: bool) -> int:
        """Remove the marks of the next page that hide nothing any more (`now`: unix seconds); return their number.

        A mark without a deletion is removed after `horizon_s`, when no gateway is still writing its request.
        """
        ended = 0
        for info in await self._scan.page(page_size):
            if info.modified <= now - KEPT_S and await self._hides_nothing(info, now, horizon_s):
                ended += 1
                if not dry_run:
                    await self.files.delete(info.key)
        if not dry_run:
            self._scan.advance()
        return ended

    async def _hides_nothing(self, info: ObjectInfo, now: float, horizon_s: float) -> bool:
        try:
            owner, image_id = marked_image(info.key)
        except ValueError as error:
            log.warning("unknown object among marks of deletions", error=str(error))
            return False
        generation = await PendingDeletions(self.files).generation(owner, image_id)
        erasure = await Tombstones(self.files).get(image_id)
        if erasure is not None and erasure.erased_at is not None and erasure.generation >= generation:
            return datetime.fromisoformat(erasure.erased_at).timestamp() <= now - KEPT_S
        record = await self.read_model.get(image_id)
        if record is not None and not record.deleted and record.generation > generation:
            return True
        if erasure is not None or info.modified > now - horizon_s:
            return False
        receipt = await read_receipt(self.files, job_id_of(image_id, generation))
        return receipt is None or receipt.kind is not ReceiptKind.DELETE or receipt.owner != owner
