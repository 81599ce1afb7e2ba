"""Acceptance: store the original, write the receipt, await Kafka's confirmation; only then is a request accepted.

A failed step is rolled back and answered 503: the receipt, the reference to the original, and the original itself if
this request stored it and no other image references it. If Kafka may still have the event, the image gets a tombstone.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from gateway.http.spooling import SpooledFile
from gateway.images.publishing import Publishing, known_receipt
from gateway.limits.quotas import Quotas
from gateway.settings import GatewaySettings
from gateway.uploads.submission_fields import Details
from schemas.events.envelope import now
from schemas.events.intake import SUBMISSION, FetchRequested, ImageUploaded
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ImageId, ObjectRef, Owner, job_id_of, new_image_id
from streams import topics
from streams.errors import DependencyUnavailable
from streams.object_store.keys import original_key
from streams.object_store.original_references import add_reference, release, withdraw
from streams.object_store.protocol import FileStore
from streams.telemetry.metrics import UPLOAD_BYTES

log = logging.getLogger(__name__)

_MAX_REMEMBERED = 10_000  # image ids

_DEFAULTS = Details()


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Accepts images on the object store and Kafka, within the owner's quota."""

    settings: GatewaySettings
    files: FileStore
    publishing: Publishing
    quotas: Quotas = field(default_factory=Quotas)
    _accepted: dict[str, None] = field(default_factory=dict)  # the newest images, oldest first

    def accepted_here(self, image_id: str) -> bool:
        """Return whether this process accepted an image, of the last 10 000."""
        return image_id in self._accepted

    async def upload(
        self,
        file: SpooledFile,
        details: Details = _DEFAULTS,
        *,
        owner: Owner,
        image_id: ImageId | None = None,
        again: bool = True,
        traceparent: str | None = None,
    ) -> Receipt:
        """Accept an uploaded file. Raises Problem (503, or 403 beyond a quota); no job exists then.

        With `again` an earlier, interrupted attempt with the same image id is continued.
        """
        known = await self._begun(image_id) if again else None
        if known is not None:
            await self._ensure_stored(file, owner)
            return await self._resend(known, traceparent)
        async with self.quotas.room(owner, size=file.size):
            return await self._accept_new(file, details, owner, image_id or new_image_id(), traceparent)

    async def _accept_new(
        self, file: SpooledFile, details: Details, owner: Owner, image_id: ImageId, traceparent: str | None
    ) -> Receipt:
        stored = False
        try:
            async with self.publishing.bounded("The object store"):
                # The reference first: it protects the bytes from concurrent removal.
                await add_reference(self.files, owner, file.sha256, image_id)
                stored = not await self._is_stored(file, owner)
                original = await self._store(file, owner, write=stored)
            receipt = _receipt(
                image_id, owner, details, kind=ReceiptKind.UPLOAD, filename=file.filename, original=original
            )
            await self.publishing.publish(receipt, topics.UPLOADED, _event(receipt), traceparent)
        except BaseException:
            # Shielded: a disconnect of the client must not interrupt the rollback.
            await asyncio.shield(self._withdraw(image_id, owner, file.sha256, stored=stored))
            raise
        await self._ensure_stored(file, owner)
        self._accepted[image_id] = None
        if len(self._accepted) > _MAX_REMEMBERED:
            del self._accepted[next(iter(self._accepted))]
        UPLOAD_BYTES.labels("ingest").inc(file.size)
        return receipt

    async def fetch(
        self,
        url: str,
        details: Details = _DEFAULTS,
        *,
        owner: Owner,
        image_id: ImageId | None = None,
        again: bool = True,
        traceparent: str | None = None,
    ) -> Receipt:
        """Accept a URL to be fetched. Raises Problem (503, or 403 beyond a quota); no job exists then."""
        known = await self._begun(image_id) if again else None
        if known is not None:
            return await self._resend(known, traceparent)
        receipt = _receipt(image_id or new_image_id(), owner, details, kind=ReceiptKind.FETCH, url=url)
        async with self.quotas.room(owner):
            await self.publishing.publish(receipt, topics.FETCH_REQUESTED, _event(receipt), traceparent)
        return receipt

    async def has_begun(self, image_id: ImageId) -> bool:
        """Return whether an attempt with this image id has written its receipt. Raises Problem (503)."""
        return await self._begun(image_id) is not None

    async def _begun(self, image_id: ImageId | None) -> Receipt | None:
        """Return the receipt of an earlier attempt with this image id, None without one."""
        if image_id is None:
            return None
        async with self.publishing.bounded("The object store"):
            return await known_receipt(self.files, job_id_of(image_id, 1), timeout_s=self.settings.storage_timeout_s)

    async def _resend(self, known: Receipt, traceparent: str | None) -> Receipt:
        """Send the event of an existing receipt again. Idempotent; a failure rolls nothing back."""
        topic = topics.UPLOADED if known.kind is ReceiptKind.UPLOAD else topics.FETCH_REQUESTED
        await self.publishing.send(known, topic, _event(known), traceparent)
        return known

    async def _is_stored(self, file: SpooledFile, owner: Owner) -> bool:
        found = await self.files.stat(original_key(owner, file.sha256))
        return found is not None and found.size == file.size

    async def _store(self, file: SpooledFile, owner: Owner, *, write: bool) -> ObjectRef:
        key = original_key(owner, file.sha256)
        if write:
            return await self.files.put(key, file.path, content_type=file.content_type, sha256=file.sha256)
        bucket, kind = self.files.bucket, file.content_type
        return ObjectRef(bucket=bucket, key=key, sha256=file.sha256, size=file.size, content_type=kind)

    async def _ensure_stored(self, file: SpooledFile, owner: Owner) -> None:
        """Store the original again if a concurrent removal deleted it before our reference was visible."""
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                if not await self._is_stored(file, owner):
                    await self._store(file, owner, write=True)
        except (DependencyUnavailable, TimeoutError) as error:  # still accepted: the original has been seen or written
            log.warning("could not verify a stored original", extra={"error": repr(error)})

    async def _withdraw(self, image_id: str, owner: Owner, sha256: str, *, stored: bool) -> None:
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await (withdraw if stored else release)(self.files, owner, sha256, image_id)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("could not remove a reference to an original", extra={"sha256": sha256, "error": repr(error)})


def _receipt(image_id: ImageId, owner: Owner, details: Details, **fields: Any) -> Receipt:
    """Return the receipt of a new image."""
    return Receipt(
        job_id=job_id_of(image_id, 1),
        image_id=image_id,
        owner=owner,
        generation=1,
        submitted_at=now(),
        lane=details.lane,
        **details.as_fields(),
        **fields,
    )


def _event(receipt: Receipt) -> ImageUploaded | FetchRequested:
    """Return the event that starts the job of a receipt."""
    submission = {name: getattr(receipt, name) for name in SUBMISSION}
    image = {"image_id": receipt.image_id, "owner": receipt.owner, "generation": receipt.generation}
    if receipt.kind is ReceiptKind.UPLOAD:
        return ImageUploaded(**image, profile=receipt.profile, **submission, original=receipt.original)
    return FetchRequested(**image, profile=receipt.profile, **submission, url=receipt.url)
