"""Idempotency keys whose time is over: what was kept of their requests goes."""

from __future__ import annotations

from dataclasses import dataclass

import structlog
from pydantic import ValidationError

from schemas.idempotency import IDEMPOTENCY, Attempt
from streams.files import FileStore, ObjectMissing

log = structlog.get_logger(__name__)

_MAX_BYTES = 1_000_000  # of an attempt


@dataclass(slots=True)
class ExpiredKeys:
    """Walks what is kept of requests, a page at a time; keeps only where it stands. Calls raise DependencyAway."""

    files: FileStore
    _after: str | None = None

    async def remove(self, *, now: float, page_size: int, dry_run: bool) -> int:
        """Remove those of the next page that expired before `now` (unix seconds); return how many there were."""
        page, expired = 0, 0
        last: str | None = None
        async for info in self.files.list(IDEMPOTENCY, after=self._after):
            page, last = page + 1, info.key
            if await self._is_expired(info.key, now):
                expired += 1
                if not dry_run:
                    await self.files.delete(info.key)
            if page == page_size:
                break
        if not dry_run:
            self._after = last if page == page_size else None
        return expired

    async def _is_expired(self, key: str, now: float) -> bool:
        try:
            attempt = Attempt.model_validate_json(await self.files.get(key, limit=_MAX_BYTES))
        except ObjectMissing:
            return False
        except (ValidationError, ValueError) as error:
            log.warning("what was kept of a request is unreadable", key=key, error=str(error)[:300])
            return True  # nobody can go on with it
        return attempt.expires_at <= now
