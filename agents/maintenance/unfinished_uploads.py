"""Removes the parts, staged files and final notes of uploads in several requests that have ended or expired."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

import structlog
from pydantic import BaseModel, ValidationError

from agents.maintenance.object_scan import ObjectScan
from streams.object_store.keys import UNFINISHED, ended_upload_key, upload_key
from streams.object_store.protocol import FileStore, ObjectMissing

_ENDED = "uploaded"
log = structlog.get_logger(__name__)


class _WithExpiry(BaseModel):
    """The expiry time of an upload's record."""

    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _Expiry:
    """When an upload expires, and when the note of its end expires: unix seconds, 0 if there is none."""

    upload: float
    note: float


@dataclass(slots=True)
class Unfinished:
    """Scans what uploads left, page by page; its only state is the cursors. Calls raise DependencyUnavailable."""

    files: FileStore
    _scans: dict[str, ObjectScan] = field(init=False)

    def __post_init__(self) -> None:
        self._scans = {root: ObjectScan(self.files, root) for root in reversed(UNFINISHED)}

    def scans(self) -> dict[str, ObjectScan]:
        """Return the scans by prefix."""
        return self._scans

    async def remove(self, *, older_than: float, page_size: int, dry_run: bool) -> int:
        """Remove objects of the next page whose upload ended before `older_than` (unix seconds); return their number.

        The record of an upload goes last, so that its expiry applies to all its parts.
        """
        count, known = 0, dict[str, _Expiry]()
        for scan in self._scans.values():
            for info in await scan.page(page_size):
                if info.modified > older_than or not await self._has_ended(info.key, older_than, known):
                    continue
                count += 1
                if not dry_run:
                    await self.files.delete(info.key)
            if not dry_run:
                scan.advance()
        if count:
            log.info("objects of ended uploads", count=count)
        return count

    async def _has_ended(self, key: str, before: float, known: dict[str, _Expiry]) -> bool:
        """Return whether an upload has ended, has expired, or has no record."""
        root, owner, upload_id, *_ = [*key.removesuffix(".json").split("/"), ""]
        if upload_id not in known:
            known[upload_id] = _Expiry(
                await self._end(upload_key(owner, upload_id)), await self._end(ended_upload_key(owner, upload_id))
            )
        expiry = known[upload_id]
        if root == _ENDED:
            return expiry.note <= before
        return expiry.note > 0 or expiry.upload <= before

    async def _end(self, key: str) -> float:
        try:
            return _WithExpiry.model_validate_json(await self.files.get(key)).expires_at.timestamp()
        except (ObjectMissing, ValidationError):
            return 0.0
