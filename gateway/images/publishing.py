"""Publishing: write a receipt, send the event it promises, await Kafka's confirmation; undo both if that fails."""

from __future__ import annotations

from gateway.http.problems import Problem
from schemas.stored.receipts import Receipt
from streams.concurrency.timeouts import bounded
from streams.errors import DependencyAway, Unconfirmed
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import read_receipt

_MAX_RECEIPT_BYTES = 256 * 1024


def _may_be_in_log(error: BaseException) -> bool:
    """Say whether an event that was not confirmed may have been taken: always, unless Kafka was never given it."""
    cause = error.__cause__ if isinstance(error, Problem) else error
    return isinstance(cause, Unconfirmed) or not isinstance(cause, DependencyAway)


async def known_receipt(files: FileStore, job_id: str, *, timeout_s: float) -> Receipt | None:
    """Return the receipt of a job, None if there is none. Raises DependencyAway or TimeoutError."""
    return await bounded(read_receipt(files, job_id, limit=_MAX_RECEIPT_BYTES), timeout_s)
