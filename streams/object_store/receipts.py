"""Receipts of accepted jobs in the object store: `jobs/{job id}.json`, found by job and by image."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog

from schemas.stored.receipts import Receipt
from schemas.values import split_job_id
from streams.object_store.keys import receipt_key
from streams.object_store.protocol import FileStore, ObjectMissing

RECEIPTS = "jobs/"
RECEIPT_BYTES = 1 << 20  # far above the size of any receipt
log = structlog.get_logger(__name__)


async def read_receipt(files: FileStore, job_id: str, *, limit: int = RECEIPT_BYTES) -> Receipt | None:
    """Return the receipt of a job, None if it is missing or unreadable. Raises DependencyUnavailable."""
    try:
        return Receipt.model_validate_json(await files.get(receipt_key(job_id), limit=limit))
    except ObjectMissing:
        return None
    except ValueError as error:  # too large, or a ValidationError
        log.warning("receipt unreadable", job_id=job_id, error=str(error)[:300])
        return None


def job_of(key: str) -> str:
    """Return the job id in the key of a receipt."""
    return key.removeprefix(RECEIPTS).removesuffix(".json")


def generation_of(key: str) -> int:
    """Return the generation in the key of a receipt, 0 for any other key."""
    try:
        return split_job_id(job_of(key))[1]
    except ValueError:
        return 0


async def receipt_keys(files: FileStore, image_id: str) -> AsyncIterator[str]:
    """Iterate over the keys of an image's receipts, one per job. Raises DependencyUnavailable."""
    async for found in files.list(f"{RECEIPTS}{image_id}."):
        yield found.key


async def has_receipt(files: FileStore, image_id: str) -> bool:
    """Return whether any job of an image was ever accepted. Raises DependencyUnavailable."""
    async for _ in receipt_keys(files, image_id):
        return True
    return False
