"""Receipts in the object store: what was accepted, `jobs/{job id}.json`, found by job and by image."""

from __future__ import annotations

from collections.abc import AsyncIterator

import structlog

from schemas.stored.receipts import Receipt
from schemas.values import split_job_id
from streams.object_store.keys import receipt_key
from streams.object_store.protocol import FileStore, ObjectMissing

RECEIPTS = "jobs/"
RECEIPT_BYTES = 1 << 20  # far more than is ever written
log = structlog.get_logger(__name__)


async def read_receipt(files: FileStore, job_id: str, *, limit: int = RECEIPT_BYTES) -> Receipt | None:
    """Return the receipt of a job, None if there is none that can be read. Raises DependencyUnavailable."""
    try:
        return Receipt.model_validate_json(await files.get(receipt_key(job_id), limit=limit))
    except ObjectMissing:
        return None
    except ValueError as error:  # larger than it may be, or, as a ValidationError, no receipt
        log.warning("a receipt is unreadable", job_id=job_id, error=str(error)[:300])
        return None


def job_of(key: str) -> str:
    """Return the job id a receipt's key names, if it is the key of one."""
    return key.removeprefix(RECEIPTS).removesuffix(".json")


def generation_of(key: str) -> int:
    """Return the generation a receipt's key names, 0 if it is none."""
    try:
        return split_job_id(job_of(key))[1]
    except ValueError:
        return 0


async def receipt_keys(files: FileStore, image_id: str) -> AsyncIterator[str]:
    """Walk the keys of an image's receipts, one per job. Raises DependencyUnavailable."""
    async for found in files.list(f"{RECEIPTS}{image_id}."):
        yield found.key


async def has_receipt(files: FileStore, image_id: str) -> bool:
    """Say whether anything was ever accepted of an image. Raises DependencyUnavailable."""
    async for _ in receipt_keys(files, image_id):
        return True
    return False
