"""Publishing: write a receipt, send the event it promises, await Kafka's confirmation; undo both if that fails.

A deletion's receipt is followed by its mark, and removed after it: a mark means that the deletion was accepted, also if
the gateway is killed between the two.

If Kafka may have taken the event although it did not confirm it, the image gets a tombstone, so that no stage works on
an image whose request was answered 503.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

from gateway.http.problems import Problem, unavailable
from gateway.protocols import EventSink
from gateway.settings import GatewaySettings
from schemas.events.envelope import Event, now
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import Lane, job_id_of
from streams.concurrency.timeouts import bounded
from streams.errors import DeliveryUnconfirmed, DependencyUnavailable
from streams.object_store.keys import receipt_key
from streams.object_store.pending_deletions import PendingDeletions
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import read_receipt
from streams.object_store.tombstones import Tombstones
from streams.topics import Topic

log = logging.getLogger(__name__)

_MAX_RECEIPT_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Publishing:
    """Writes receipts and sends their events, both within time limits. Raises Problem (503)."""

    settings: GatewaySettings
    files: FileStore
    events: EventSink

    async def publish(
        self, receipt: Receipt, topic: Topic, event: Event, traceparent: str | None, *, new: bool = True
    ) -> None:
        """Write the receipt and send the event. If either fails, a `new` receipt is removed again."""
        sending = False
        try:
            async with self.bounded("The object store"):
                await self._write(receipt)
            sending = True
            await self.send(receipt, topic, event, traceparent)
        except BaseException as error:
            if new:
                await asyncio.shield(self._remove_receipt(receipt))
            if sending and receipt.kind is not ReceiptKind.DELETE and _may_be_in_log(error):
                await asyncio.shield(self._write_tombstone(receipt))
            raise

    async def send(self, receipt: Receipt, topic: Topic, event: Event, traceparent: str | None) -> None:
        """Send an event in the receipt's lane and await its confirmation."""
        async with self.bounded("Kafka", self.settings.delivery_timeout_s):
            await self.events.send(topic, event, traceparent=traceparent, bulk=receipt.lane is Lane.BULK)

    @contextlib.asynccontextmanager
    async def bounded(self, dependency: str, seconds: float | None = None) -> AsyncIterator[None]:
        """Limit the body to `seconds` (default: the storage timeout); a failing dependency becomes a 503."""
        try:
            async with asyncio.timeout(seconds or self.settings.storage_timeout_s):
                yield
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("request not accepted: dependency unavailable", extra={"on": dependency, "error": repr(error)})
            raise unavailable(dependency, retry_after_s=self.settings.retry_after_s) from error

    async def _write(self, receipt: Receipt) -> None:
        body = receipt.model_dump_json().encode()
        await self.files.put(receipt_key(receipt.job_id), body, content_type="application/json")
        if receipt.kind is ReceiptKind.DELETE:
            await PendingDeletions(self.files).add(receipt.owner, receipt.image_id, receipt.generation)

    async def _write_tombstone(self, rejected: Receipt) -> None:
        """Delete an image that was answered 503, in case Kafka has its event.

        Stages drop it, and no client sees it; the reconciler has the indexer remove what was stored.
        """
        image_id, owner, generation = rejected.image_id, rejected.owner, rejected.generation + 1
        deletion = Receipt(
            job_id=job_id_of(image_id, generation),
            image_id=image_id,
            owner=owner,
            generation=generation,
            kind=ReceiptKind.DELETE,
            submitted_at=now(),
        )
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await Tombstones(self.files).make_certain(image_id, owner, generation)
                await self._write(deletion)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning(
                "could not write a tombstone for a rejected upload", extra={"image_id": image_id, "error": repr(error)}
            )

    async def _remove_receipt(self, receipt: Receipt) -> None:
        key = receipt_key(receipt.job_id)
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                if receipt.kind is ReceiptKind.DELETE:
                    await PendingDeletions(self.files).remove(receipt.owner, receipt.image_id)
                await self.files.delete(key)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("could not remove the receipt of a rejected request", extra={"key": key, "error": repr(error)})


async def known_receipt(files: FileStore, job_id: str, *, timeout_s: float) -> Receipt | None:
    """Return the receipt of a job, None if there is none. Raises DependencyUnavailable or TimeoutError."""
    return await bounded(read_receipt(files, job_id, limit=_MAX_RECEIPT_BYTES), timeout_s)


def _may_be_in_log(error: BaseException) -> bool:
    """Return whether Kafka may have taken an unconfirmed event: always, unless it was never handed over."""
    cause = error.__cause__ if isinstance(error, Problem) else error
    return isinstance(cause, DeliveryUnconfirmed) or not isinstance(cause, DependencyUnavailable)
