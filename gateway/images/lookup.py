"""Lookup of an owner's images and jobs: the read model's record or, until it exists, the receipt.

An image is hidden as soon as its deletion is accepted, whatever generations lie between the record's and the
deletion's: tombstone, receipt and mark exist before the indexer processes the event. One image is looked up by all
three; for a page of images the marks suffice, which cost one listing.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gateway.http.problems import Problem
from gateway.images.publishing import known_receipt
from gateway.settings import GatewaySettings
from schemas.events.intake import SUBMISSION
from schemas.http.problems import ProblemCode
from schemas.stored.erasures import Erasure
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ID_PATTERN, ImageState, Owner, Rendition, job_id_of, split_job_id
from streams.concurrency.timeouts import bounded
from streams.object_store.keys import receipt_key
from streams.object_store.pending_deletions import PendingDeletions
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import generation_of, job_of, receipt_keys
from streams.object_store.tombstones import Tombstones, erasure_key
from streams.read_model.protocol import ReadModel
from streams.read_model.records import Hit, ImageRecord

_ID = re.compile(ID_PATTERN)
_PARALLEL = 16  # concurrent object store reads per request


@dataclass(frozen=True, slots=True)
class Job:
    """One run of one image: the record if the read model has this run, else the receipt."""

    job_id: str
    image_id: str
    record: ImageRecord | None
    receipt: Receipt | None

    @property
    def state(self) -> ImageState:
        """The run's state."""
        if self.record is None:
            return ImageState.PROCESSING
        return ImageState.DELETED if self.record.deleted else self.record.state


@dataclass(frozen=True, slots=True)
class Lookup:
    """Finds an owner's images and jobs. Methods raise Problem, DependencyUnavailable or TimeoutError."""

    settings: GatewaySettings
    files: FileStore
    read_model: ReadModel

    async def image(self, image_id: str, owner: Owner) -> ImageRecord:
        """Return an image. Raises Problem: unknown (404), deleted (410), or not indexed yet (409)."""
        record = await self.known(image_id, owner)
        await self._refuse_deleted(image_id, owner, record.generation)
        if isinstance(record, Receipt):
            raise self.not_finished("The image is accepted but not processed yet.")
        return record

    async def images(self, image_ids: Sequence[str], owner: Owner) -> list[ImageRecord | Problem]:
        """Return several images in order, or the problem of each that is not available."""
        wanted = [image_id for image_id in image_ids if _ID.fullmatch(image_id)]
        found = await bounded(self.read_model.find(owner, wanted), self.settings.query_timeout_s) if wanted else []
        shown = {record.image_id: record for record in await self.shown(found)}
        hidden = {record.image_id for record in found} - shown.keys()
        gate = asyncio.Semaphore(_PARALLEL)

        async def one(image_id: str) -> ImageRecord | Problem:
            if image_id in shown:
                return shown[image_id]
            if image_id in hidden:
                return _gone()
            async with gate:
                try:
                    return await self.image(image_id, owner)
                except Problem as problem:
                    return problem

        return list(await asyncio.gather(*(one(image_id) for image_id in image_ids)))

    async def visible(self, lists: Iterable[Sequence[Hit]]) -> list[list[Hit]]:
        """Return lists of hits without those of deleted images."""
        lists = list(lists)
        shown = {record.image_id for record in await self.shown(hit.record for hits in lists for hit in hits)}
        return [[hit for hit in hits if hit.record.image_id in shown] for hits in lists]

    async def shown(self, records: Iterable[ImageRecord]) -> list[ImageRecord]:
        """Return the images without those whose deletion is accepted.

        Marks are read after records, and outlive them (KEPT_S).
        """
        records = [record for record in records if not record.deleted and record.state is not ImageState.DELETED]
        images = [(record.owner, record.image_id, record.generation) for record in records]
        hidden = await bounded(PendingDeletions(self.files).hidden(images), self.settings.storage_timeout_s)
        return [record for record in records if record.image_id not in hidden]

    async def job(self, job_id: str, owner: Owner) -> Job:
        """Return a job. Raises Problem: unknown (404), its image deleted, or superseded by a newer run (410)."""
        try:
            image_id, generation = split_job_id(job_id)
        except ValueError:
            raise _no_job() from None
        if not _ID.fullmatch(image_id) or job_id != job_id_of(image_id, generation):
            raise _no_job()
        record = await self._record(image_id, owner)
        if record is not None and record.generation > generation:
            if record.deleted:
                raise _gone()
            await self._refuse_deleted(image_id, owner, record.generation)
            newer = job_id_of(image_id, record.generation)
            raise Problem(ProblemCode.SUPERSEDED, f"The job is superseded by {newer}.")
        if record is not None and record.generation == generation:
            if not record.deleted:
                await self._refuse_deleted(image_id, owner, generation)
            return Job(job_id, image_id, record, None)
        receipt = await self._receipt(job_id)
        if receipt is None or receipt.owner != owner:
            raise _no_job()
        if receipt.kind is not ReceiptKind.DELETE:
            await self._refuse_deleted(image_id, owner, generation)
        return Job(job_id, image_id, None, receipt)

    async def known(self, image_id: str, owner: Owner) -> ImageRecord | Receipt:
        """Return an image's record or its first receipt, also while its deletion is pending."""
        if not _ID.fullmatch(image_id):
            raise _no_image()
        record = await self._record(image_id, owner)
        if record is None:
            receipt = await self._receipt(job_id_of(image_id, 1))
            if receipt is None or receipt.owner != owner:
                raise _no_image()
            return receipt
        if record.deleted or record.state is ImageState.DELETED:
            raise _gone()
        return record

    async def accepted(self, image_id: str, owner: Owner) -> ImageRecord:
        """Return an image from the read model, else as submitted. Raises Problem: unknown (404) or deleted (410)."""
        found = await self.known(image_id, owner)
        await self._refuse_deleted(image_id, owner, found.generation)
        if isinstance(found, Receipt):
            return _as_accepted(found, ImageRecord(image_id=image_id, owner=owner, generation=found.generation))
        if found.submitted_at is not None or found.revision:
            return found
        receipt = await self._receipt(job_id_of(image_id, found.generation))
        return found if receipt is None or receipt.owner != owner else _as_accepted(receipt, found)

    def rendition(self, record: ImageRecord, size: str) -> Rendition:
        """Return one size of an image. Raises Problem: no sizes yet (409), or not this size (404)."""
        self.refuse_without_sizes(record)
        for rendition in record.renditions:
            if rendition.name == size:
                return rendition
        known = ", ".join(rendition.name for rendition in record.renditions)
        raise Problem(ProblemCode.NO_SUCH_SIZE, f"The image has these sizes: {known}.")

    def refuse_without_sizes(self, record: ImageRecord) -> None:
        """Raise Problem for an image without sizes: not yet (409), or never (404)."""
        if record.renditions:
            return
        if record.state is ImageState.PROCESSING:
            raise self.not_finished("The image's sizes are not ready yet.")
        raise Problem(ProblemCode.NO_SUCH_SIZE, f"The image is {record.state} and has no sizes.")

    def not_finished(self, detail: str) -> Problem:
        """Return the 409 for a result that is not ready."""
        return Problem(ProblemCode.NOT_FINISHED, detail, headers={"Retry-After": str(self.settings.poll_after_s)})

    async def erasure(self, image_id: str, owner: Owner) -> Erasure:
        """Return the tombstone of a deleted image. Raises Problem (404) without one."""
        if not _ID.fullmatch(image_id):
            raise _no_erasure()
        found = await bounded(Tombstones(self.files).get(image_id), self.settings.storage_timeout_s)
        if found is None or found.owner != owner:
            raise _no_erasure()
        return found

    async def _record(self, image_id: str, owner: Owner) -> ImageRecord | None:
        """Return the read model's record; for an image erased from it, a deleted record from the tombstone.

        Another owner's image causes the same reads as an unknown id, so that timing reveals nothing.
        """
        record = await bounded(self.read_model.get(image_id), self.settings.query_timeout_s)
        if record is not None and record.owner == owner:
            return record
        erasure = await bounded(Tombstones(self.files).get(image_id), self.settings.storage_timeout_s)
        if erasure is None or erasure.erased_at is None or erasure.owner != owner:
            return None
        return ImageRecord(
            image_id=image_id,
            owner=erasure.owner,
            generation=erasure.generation,
            state=ImageState.DELETED,
            deleted=True,
        )

    async def _receipt(self, job_id: str) -> Receipt | None:
        return await known_receipt(self.files, job_id, timeout_s=self.settings.storage_timeout_s)

    async def _refuse_deleted(self, image_id: str, owner: Owner, generation: int) -> None:
        """Raise Problem (410) if the deletion of this generation, or of a later one, is accepted."""
        # No accepted deletion is without its tombstone, nor any later generation without the next one's receipt.
        traces = {erasure_key(image_id), receipt_key(job_id_of(image_id, generation + 1))}
        timeout_s = self.settings.storage_timeout_s
        if not await bounded(self.files.existing(traces), timeout_s):
            return
        if await bounded(self._is_deleted(image_id, owner, generation), timeout_s):
            raise _gone()

    async def _is_deleted(self, image_id: str, owner: Owner, generation: int) -> bool:
        erasure = await Tombstones(self.files).get(image_id)
        if erasure is not None and erasure.covers(owner, generation):
            return True
        if await PendingDeletions(self.files).generation(owner, image_id) >= generation:
            return True
        async for key in receipt_keys(self.files, image_id):
            if generation_of(key) >= generation:
                receipt = await self._receipt(job_of(key))
                if receipt is not None and receipt.kind is ReceiptKind.DELETE and receipt.owner == owner:
                    return True
        return False


def _as_accepted(receipt: Receipt, known: ImageRecord) -> ImageRecord:
    """Return a record with the submission fields of its receipt, which the read model does not have yet."""
    submission = receipt.model_dump(include=set(SUBMISSION))
    submitted = {"submitted_at": receipt.first_submitted_at or receipt.submitted_at, "source_url": receipt.url}
    required = known.required or receipt.profile.stages
    return ImageRecord.model_validate({**known.model_dump(), **submission, **submitted, "required": required})


def _no_image() -> Problem:
    return Problem(ProblemCode.NOT_FOUND, "No image has this id.")


def _no_erasure() -> Problem:
    return Problem(ProblemCode.NOT_FOUND, "No deleted image has this id.")


def _no_job() -> Problem:
    return Problem(ProblemCode.NOT_FOUND, "No job has this id.")


def _gone() -> Problem:
    return Problem(ProblemCode.GONE, "The image was deleted.")
