"""Deletion: record the request in the object store, then publish it as a fact of the next generation."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from gateway.images.publishing import Publishing, known_receipt
from gateway.settings import GatewaySettings
from schemas.events.facts import DeletionRequested
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import Owner
from streams import topics
from streams.errors import DependencyUnavailable
from streams.object_store.protocol import FileStore
from streams.object_store.tombstones import Tombstones

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Deletion:
    """Accepts deletions of images."""

    settings: GatewaySettings
    files: FileStore
    publishing: Publishing

    async def delete(self, image_id: str, generation: int, *, owner: Owner, traceparent: str | None = None) -> Receipt:
        """Accept the deletion of an image now at `generation`. Its receipt and mark hide the image at once.

        Idempotent: repeating gives the same generation and the same event id. Raises Problem (503), and then the
        image is unchanged.
        """
        while True:
            event = DeletionRequested(image_id=image_id, owner=owner, generation=generation + 1)
            known = await known_receipt(self.files, event.job_id, timeout_s=self.settings.storage_timeout_s)
            if known is None or known.kind is ReceiptKind.DELETE:
                break
            generation += 1  # a newer run was accepted that the read model has not seen yet
        receipt = known or Receipt(
            job_id=event.job_id,
            image_id=image_id,
            owner=owner,
            generation=event.generation,
            kind=ReceiptKind.DELETE,
            submitted_at=event.occurred_at,
        )
        tombstones, requested_here = Tombstones(self.files), True  # an interrupted request may have been written
        try:
            async with self.publishing.bounded("The object store"):
                requested_here = await tombstones.request(image_id, owner, event.generation)
            await self.publishing.publish(receipt, topics.FACTS, event, traceparent, new=known is None)
        except BaseException:
            if requested_here:
                await asyncio.shield(self._withdraw(tombstones, image_id, event.generation))
            raise
        return receipt

    async def _withdraw(self, tombstones: Tombstones, image_id: str, generation: int) -> None:
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await tombstones.cancel(image_id, generation)
        except (DependencyUnavailable, TimeoutError) as error:  # the janitor requests the deletion again
            log.warning("could not withdraw a deletion request", extra={"image_id": image_id, "error": repr(error)})
