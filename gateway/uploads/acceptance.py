"""Accepting: stored, receipt written, delivery confirmed by Kafka; only then is a request accepted.

When a step fails, everything is taken back and the client hears 503: the receipt, the claim on the original, and the
original if this request brought it and nobody else claims it. Should Kafka have the event all the same, the image is
deleted like any other.
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

_REMEMBERED = 10_000  # images of those this process accepted

NOTHING_SAID = Details()


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What accepting needs: where objects go, where events go, and how long either may take."""

    settings: GatewaySettings
    files: FileStore
    publishing: Publishing
    quotas: Quotas = field(default_factory=Quotas)
    _accepted: dict[str, None] = field(default_factory=dict)  # the newest images, oldest first

    def accepted_here(self, image_id: str) -> bool:
        """Say whether this process accepted an image, lately."""
        return image_id in self._accepted

    async def upload(
        self,
        file: SpooledFile,
        details: Details = NOTHING_SAID,
        *,
        owner: Owner,
        image_id: ImageId | None = None,
        again: bool = True,
        traceparent: str | None = None,
    ) -> Receipt:
        """Accept an uploaded file. Raises Problem (503, or 403 beyond a quota), and then there is no job.

        An attempt with the same image id that may have broken off is gone on with, unless `again` says there was none.
        """
        known = await self._begun(image_id) if again else None
        if known is not None:
            await self._make_sure(file, owner)
            return await self._go_on(known, traceparent)
        async with self.quotas.room(owner, size=file.size):
            return await self._take_in(file, details, owner, image_id or new_image_id(), traceparent)

    async def _take_in(
        self, file: SpooledFile, details: Details, owner: Owner, image_id: ImageId, traceparent: str | None
    ) -> Receipt:
        brought = False
        try:
            async with self.publishing.bounded("The object store"):
                # The claim comes first: from here on nobody removes the bytes from under this image.
                await add_reference(self.files, owner, file.sha256, image_id)
                brought = not await self._is_stored(file, owner)
                original = await self._store(file, owner, write=brought)
            receipt = _receipt(
                image_id, owner, details, kind=ReceiptKind.UPLOAD, filename=file.filename, original=original
            )
            await self.publishing.publish(receipt, topics.UPLOADED, _event(receipt), traceparent)
        except BaseException:
            # Shielded: a client that hangs up must not leave half an acceptance.
            await asyncio.shield(self._withdraw(image_id, owner, file.sha256, brought=brought))
            raise
        await self._make_sure(file, owner)
        self._accepted[image_id] = None
        if len(self._accepted) > _REMEMBERED:
            del self._accepted[next(iter(self._accepted))]
        UPLOAD_BYTES.labels("ingest").inc(file.size)
        return receipt

    async def fetch(
        self,
        url: str,
        details: Details = NOTHING_SAID,
        *,
        owner: Owner,
        image_id: ImageId | None = None,
        again: bool = True,
        traceparent: str | None = None,
    ) -> Receipt:
        """Accept a URL to be fetched. Raises Problem (503, or 403 beyond a quota), and then there is no job."""
        known = await self._begun(image_id) if again else None
        if known is not None:
            return await self._go_on(known, traceparent)
        receipt = _receipt(image_id or new_image_id(), owner, details, kind=ReceiptKind.FETCH, url=url)
        async with self.quotas.room(owner):
            await self.publishing.publish(receipt, topics.FETCH_REQUESTED, _event(receipt), traceparent)
        return receipt

    async def has_begun(self, image_id: ImageId) -> bool:
        """Say whether an attempt with this image id has written its receipt. Raises Problem (503)."""
        return await self._begun(image_id) is not None

    async def _begun(self, image_id: ImageId | None) -> Receipt | None:
        """Return the receipt that an attempt with this image id has written, if there was one."""
        if image_id is None:
            return None
        async with self.publishing.bounded("The object store"):
            return await known_receipt(self.files, job_id_of(image_id, 1), timeout_s=self.settings.storage_timeout_s)

    async def _go_on(self, known: Receipt, traceparent: str | None) -> Receipt:
        """Send the event of an existing receipt again. Repeating is harmless; nothing is undone if it fails."""
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

    async def _make_sure(self, file: SpooledFile, owner: Owner) -> None:
        """Put the original back if somebody who had not seen our claim removed it at the very moment it was made."""
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                if not await self._is_stored(file, owner):
                    await self._store(file, owner, write=True)
        except (DependencyUnavailable, TimeoutError) as error:  # accepted all the same: it was there when we claimed it
            log.warning("an original could not be looked at again", extra={"error": repr(error)})

    async def _withdraw(self, image_id: str, owner: Owner, sha256: str, *, brought: bool) -> None:
        try:
            async with asyncio.timeout(self.settings.storage_timeout_s):
                await (withdraw if brought else release)(self.files, owner, sha256, image_id)
        except (DependencyUnavailable, TimeoutError) as error:
            log.warning("a claim could not be taken back", extra={"sha256": sha256, "error": repr(error)})


def _receipt(image_id: ImageId, owner: Owner, details: Details, **of: Any) -> Receipt:
    """Return the receipt of a new image."""
    return Receipt(
        job_id=job_id_of(image_id, 1),
        image_id=image_id,
        owner=owner,
        generation=1,
        submitted_at=now(),
        lane=details.lane,
        **details.as_fields(),
        **of,
    )


def _event(receipt: Receipt) -> ImageUploaded | FetchRequested:
    """Return the event that begins what a receipt promises."""
    said = {name: getattr(receipt, name) for name in SUBMISSION}
    who = {"image_id": receipt.image_id, "owner": receipt.owner, "generation": receipt.generation}
    if receipt.kind is ReceiptKind.UPLOAD:
        return ImageUploaded(**who, profile=receipt.profile, **said, original=receipt.original)
    return FetchRequested(**who, profile=receipt.profile, **said, url=receipt.url)
