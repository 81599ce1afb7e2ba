"""The end of an upload that took more than one request: its bytes become an image, once.

The image's id is known from the upload's beginning, and a gateway that goes on where another one was killed accepts
under the same id: the same receipt, the same event.
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

_BUFFER = 1 << 20  # bytes gathered before one write and hash in a thread
_FINAL = frozenset({ProblemCode.UNSUPPORTED_FORMAT, ProblemCode.DIGEST_MISMATCH, ProblemCode.FILE_TOO_LARGE})
"""Trying again would not help."""


@dataclass(frozen=True, slots=True)
class Completion:
    """Makes images of uploads."""

    settings: GatewaySettings
    uploads: Uploads
    submitting: Submission

    async def finish(
        self, request: Request, record: UploadRecord, content: Callable[[], AsyncIterator[bytes]]
    ) -> EndedUpload:
        """Accept what `content` gives as the upload's image; once it ended, say again how.

        Raises Problem: what came is no image (the upload has ended), or a part of the system is away, and nothing has
        changed, or another gateway is at it.
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
                answer = await self.submitting.accept(
                    request, record.owner, file, record.details, ImageId(record.image_id), again=True
                )
            return await self.uploads.end(record, file.size, job=answer.body)

    async def _with_own_image(self, record: UploadRecord) -> UploadRecord:
        """Give the upload another image if its own was disowned: Kafka did not confirm it, and may have it."""
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
                    if arriving.gathered >= _BUFFER:
                        await asyncio.to_thread(arriving.write)
                await asyncio.to_thread(arriving.write)
            finally:
                arriving.close()
        if record.size is not None and arriving.size < record.size:
            raise DependencyUnavailable(
                f"upload {record.upload_id}: {arriving.size} of {record.size} bytes were read back"
            )
        return arriving.ready(record.sha256)


def known_format(head: bytes) -> str:
    """Return the format of a file by its first bytes. Raises Problem when it is none that is taken."""
    known = sniff(head)
    if known is None:
        detail = f"By its first bytes the file is none of: {', '.join(MEDIA_TYPES)}."
        raise Problem(ProblemCode.UNSUPPORTED_FORMAT, detail)
    return known
