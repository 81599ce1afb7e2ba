"""What is over of uploads that take more than one request: parts and staged files of such as were never finished,
and the notes of how the others ended.
"""

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


class _Lasting(BaseModel):
    """What says until when an upload can go on."""

    expires_at: datetime


@dataclass(frozen=True, slots=True)
class _Ends:
    """When an upload can go on no more, and when it is forgotten how it ended: unix seconds, 0 if nothing says so."""

    open: float
    told: float


@dataclass(slots=True)
class Unfinished:
    """Walks what uploads left, a page at a time; keeps only where it stands. Calls raise DependencyUnavailable."""

    files: FileStore
    _walks: dict[str, ObjectScan] = field(init=False)

    def __post_init__(self) -> None:
        self._walks = {root: ObjectScan(self.files, root) for root in reversed(UNFINISHED)}

    async def remove(self, *, older_than: float, page_size: int, dry_run: bool) -> int:
        """Remove what the next page has of uploads that were over before `older_than` (unix seconds); return how many.

        The record of an upload goes last, so that what it says holds for its parts.
        """
        count, known = 0, dict[str, _Ends]()
        for walk in self._walks.values():
            for info in await walk.page(page_size):
                if info.modified > older_than or not await self._is_over(info.key, older_than, known):
                    continue
                count += 1
                if not dry_run:
                    await self.files.delete(info.key)
            if not dry_run:
                walk.go_on()
        if count:
            log.info("objects of uploads that are over", count=count)
        return count

    async def _is_over(self, key: str, before: float, known: dict[str, _Ends]) -> bool:
        """Say whether an upload is over: it ended, its time is up, or nothing says that there is one."""
        root, owner, upload_id, *_ = [*key.removesuffix(".json").split("/"), ""]
        if upload_id not in known:
            known[upload_id] = _Ends(
                await self._end(upload_key(owner, upload_id)), await self._end(ended_upload_key(owner, upload_id))
            )
        ends = known[upload_id]
        if root == _ENDED:
            return ends.told <= before
        return ends.told > 0 or ends.open <= before

    async def _end(self, key: str) -> float:
        try:
            return _Lasting.model_validate_json(await self.files.get(key)).expires_at.timestamp()
        except (ObjectMissing, ValidationError):
            return 0.0
