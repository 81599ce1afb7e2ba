"""Completion of resumable and direct uploads: their bytes are submitted as one image, once.

The image id is assigned when the upload is created. A gateway that completes an upload after another one crashed
accepts it under the same id, with the same receipt and event.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

from fastapi import Request

from gateway.http.problems import Problem
from gateway.http.spooling import Arriving, SpooledFile, room, spool_folder
from gateway.settings import GatewaySettings
from gateway.upload_sessions.leases import distributed_lease
from gateway.upload_sessions.store import EndedUpload, UploadRecord, Uploads
from gateway.uploads.submission import Submission
from schemas.formats import MEDIA_TYPES, sniff
from schemas.http.problems import ProblemCode
from schemas.values import ImageId, new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.keys import finishing_prefix
from streams.object_store.tombstones import Tombstones

_BUFFER = 1 << 20  # bytes buffered before one write and hash in a thread
_FINAL = frozenset({ProblemCode.UNSUPPORTED_FORMAT, ProblemCode.DIGEST_MISMATCH, ProblemCode.FILE_TOO_LARGE})
"""Problems that a retry cannot solve; they end the upload."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Submits the bytes of an upload as an image."""

    settings: GatewaySettings
    uploads: Uploads
    submission: Submission

    async def finish(
        self, request: Request, record: UploadRecord, content: Callable[[], AsyncIterator[bytes]]
    ) -> EndedUpload:
        """Accept the bytes of `content` as the upload's image. Idempotent: an ended upload is returned unchanged.

        Raises Problem: the bytes are no image (this ends the upload), a dependency is unavailable (nothing changes),
        or another gateway is completing the upload (423).
        """
        async with distributed_lease(self.uploads.files, finishing_prefix(record.owner, record.upload_id)):
            known = await self.uploads.find(record.owner, record.upload_id)
            if isinstance(known, EndedUpload):
                return known
            record = await self._with_own_image(known)
            with spool_folder(self.settings) as folder:
                try:
                    file = await self._gather(record, content(), folder / "original")
                except Problem as problem:
                    if problem.code in _FINAL:
                        await self.uploads.end(record, 0, why=problem)
                    raise
                answer = await self.submission.accept(
                    request, record.owner, file, record.details, ImageId(record.image_id), again=True
                )
            return await self.uploads.end(record, file.size, job=answer.body)

    async def _with_own_image(self, record: UploadRecord) -> UploadRecord:
        """Assign a new image id if the current one has a tombstone: Kafka did not confirm its event but may have it."""
        if await Tombstones(self.uploads.files).get(record.image_id) is None:
            return record
        record = record.model_copy(update={"image_id": new_image_id()})
        await self.uploads.save(record)
        return record

    async def _gather(self, record: UploadRecord, content: AsyncIterator[bytes], path: Path) -> SpooledFile:
        with room(self.settings):
            arriving = Arriving(path, record.filename, max_bytes=self.settings.max_upload_bytes, strict=False)
            try:
                async for chunk in content:
                    arriving.take(chunk)
                    if arriving.buffered >= _BUFFER:
                        await asyncio.to_thread(arriving.write)
                await asyncio.to_thread(arriving.write)
            finally:
                arriving.close()
        if record.size is not None and arriving.size < record.size:
            raise DependencyUnavailable(
                f"upload {record.upload_id}: the object store returned {arriving.size} of {record.size} bytes"
            )
        return arriving.ready(record.sha256)


def sniff_format(head: bytes) -> str:
    """Return the format of a file by its first bytes. Raises Problem (415) for an unsupported format."""
    known = sniff(head)
    if known is None:
        detail = f"The file's signature matches none of the supported formats: {', '.join(MEDIA_TYPES)}."
        raise Problem(ProblemCode.UNSUPPORTED_FORMAT, detail)
    return known
