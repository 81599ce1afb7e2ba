"""Removes stored requests whose Idempotency-Key has expired."""

from __future__ import annotations

from dataclasses import dataclass, field

import structlog
from pydantic import ValidationError

from agents.maintenance.object_scan import ObjectScan
from schemas.stored.idempotency import IDEMPOTENCY, Attempt
from streams.object_store.protocol import FileStore, ObjectMissing

log = structlog.get_logger(__name__)

_MAX_BYTES = 1_000_000  # per stored request


@dataclass(slots=True)
class ExpiredKeys:
    """Scans stored idempotency keys page by page; its only state is the cursor. Calls raise DependencyUnavailable."""

    files: FileStore
    _scan: ObjectScan = field(init=False)

    def __post_init__(self) -> None:
        self._scan = ObjectScan(self.files, IDEMPOTENCY)

    def scans(self) -> dict[str, ObjectScan]:
        """Return the scan by its prefix."""
        return {IDEMPOTENCY: self._scan}

    async def remove(self, *, now: float, page_size: int, dry_run: bool) -> int:
        """Remove the expired requests of the next page (`now`: unix seconds); return their number."""
        expired = 0
        for info in await self._scan.page(page_size):
            if await self._is_expired(info.key, now):
                expired += 1
                if not dry_run:
                    await self.files.delete(info.key)
        if not dry_run:
            self._scan.advance()
        return expired

    async def _is_expired(self, key: str, now: float) -> bool:
        try:
            attempt = Attempt.model_validate_json(await self.files.get(key, limit=_MAX_BYTES))
        except ObjectMissing:
            return False
        except (ValidationError, ValueError) as error:
            log.warning("unreadable stored request", key=key, error=str(error)[:300])
            return True  # it cannot be answered from
        return attempt.expires_at <= now
