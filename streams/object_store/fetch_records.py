"""Answers of sources by owner and URL, so that a URL is not fetched again while its answer is valid.

Never shared between owners: nobody learns what another one fetched.
"""

from __future__ import annotations

import hashlib

import structlog
from pydantic import ValidationError

from schemas.stored.fetches import FetchRecord
from streams.object_store.protocol import FileStore, ObjectMissing

ROOT = "fetched/"
_MAX_BYTES = 50_000
log = structlog.get_logger(__name__)


def fetch_record_key(owner: str, url: str) -> str:
    """Return the key of the last answer for a URL."""
    return f"{ROOT}{owner}/{hashlib.sha256(url.encode('utf-8', 'surrogatepass')).hexdigest()}.json"


async def read_fetch_record(files: FileStore, owner: str, url: str) -> FetchRecord | None:
    """Return the last answer for a URL, None if there is none or it is unreadable. Raises DependencyUnavailable."""
    try:
        data = await files.get(fetch_record_key(owner, url), limit=_MAX_BYTES)
        return FetchRecord.model_validate_json(data)
    except ObjectMissing:
        return None
    except (ValidationError, ValueError) as error:
        log.warning("unreadable record of a fetch", error=str(error)[:300])
        return None


async def write_fetch_record(files: FileStore, owner: str, record: FetchRecord) -> None:
    """Store the last answer for a URL. Raises DependencyUnavailable."""
    data = record.model_dump_json(exclude_none=True).encode()
    await files.put(fetch_record_key(owner, record.url), data, content_type="application/json")
