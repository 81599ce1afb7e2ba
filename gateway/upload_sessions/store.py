"""Uploads that take more than one request: what is known of them and came so far is kept in the object store.

So any gateway goes on with what another began, and one that is killed loses a piece at most. A piece is written whole
or not at all, and never over another: of two that send the same part at once, one is refused.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pydantic import Field, ValidationError

from gateway.http.problems import Problem
from gateway.limits.quotas import Quotas
from gateway.settings import GatewaySettings
from gateway.uploads.submission_fields import Details
from schemas.http.problems import ProblemCode
from schemas.http.submissions import Submitted
from schemas.values import ID_PATTERN, Lane, Owner, Value, new_image_id
from streams.errors import DependencyUnavailable
from streams.object_store.keys import (
    ended_upload_key,
    finishing_prefix,
    pieces_prefix,
    staged_key,
    upload_key,
    uploads_prefix,
)
from streams.object_store.protocol import FileStore, ObjectMissing, delete_prefix

_JSON = "application/json"
_RECORD_BYTES = 1 << 20  # far more than is ever written
_MAX_PIECES = 10_000  # of one upload: chunks of a few bytes would make an object each
_STORING = 4  # pieces in memory at once, whoever sends them
_ID = re.compile(ID_PATTERN)

V = TypeVar("V", bound=Value)


class UploadKind(StrEnum):
    """How the bytes come."""

    RESUMABLE = "resumable"
    DIRECT = "direct"


class UploadRecord(Value):
    """An upload that has not ended."""

    upload_id: str = Field(pattern=ID_PATTERN)
    owner: Owner
    kind: UploadKind
    image_id: str = Field(pattern=ID_PATTERN, description="of the image to be: an upload ends as one image at most")
    expires_at: str
    size: int | None = Field(None, description="bytes; empty = the client has not said yet")
    sha256: str | None = Field(None, description="what the bytes must be, if the client said so")
    told: str | None = Field(None, description="Upload-Metadata as it was sent")
    filename: str | None = None
    details: Details = Field(default_factory=Details)


class Refusal(Value):
    """Why no image became of an upload."""

    code: ProblemCode
    detail: str


class EndedUpload(Value):
    """How an upload ended. Nothing of the image is kept here: it may be deleted any time."""

    upload_id: str
    owner: Owner
    kind: UploadKind
    expires_at: str
    size: int
    job_id: str | None = None
    image_id: str | None = None
    lane: Lane = Lane.INTERACTIVE
    duplicate: bool = False
    refusal: Refusal | None = None


def expires(record: UploadRecord | EndedUpload) -> datetime:
    """Return when an upload is over."""
    return datetime.fromisoformat(record.expires_at)


def in_seconds(seconds: float) -> str:
    """Return the time in so many seconds, RFC 3339."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Uploads:
    """Uploads that take more than one request. Calls raise DependencyUnavailable or TimeoutError."""

    settings: GatewaySettings
    files: FileStore
    quotas: Quotas = field(default_factory=Quotas)
    _storing: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_STORING))

    def new(self, owner: Owner, kind: UploadKind, **said: Any) -> UploadRecord:
        """Return the record of an upload that begins now. Nothing is written yet."""
        return UploadRecord(
            upload_id=new_image_id(),
            owner=owner,
            kind=kind,
            image_id=new_image_id(),
            expires_at=in_seconds(self.settings.upload_expires_s),
            **said,
        )

    async def begin(self, record: UploadRecord) -> None:
        """Write down that an upload begins.

        Raises Problem when its owner has too many that have not ended, or no room for what it is to become.
        """
        await self.quotas.check(record.owner, size=record.size or 0)
        open_now, most = 0, self.settings.max_unfinished_uploads
        async for _ in self.files.list(uploads_prefix(record.owner)):
            open_now += 1
            if open_now >= most:
                detail = f"There are {most} uploads that were begun and not finished. Finish or delete some first."
                raise Problem(ProblemCode.TOO_MANY_UPLOADS, detail, headers={"Retry-After": "60"})
        await self.save(record)

    async def save(self, record: UploadRecord) -> None:
        """Write down what is known of an upload."""
        await self._write(upload_key(record.owner, record.upload_id), record)

    async def find(self, owner: Owner, upload_id: str) -> UploadRecord | EndedUpload:
        """Return an upload. Raises Problem for one that is not there (any more), or not this owner's."""
        if not _ID.fullmatch(upload_id):
            raise _no_upload()
        found: UploadRecord | EndedUpload | None = await self._read(ended_upload_key(owner, upload_id), EndedUpload)
        found = found or await self._read(upload_key(owner, upload_id), UploadRecord)
        if found is None:
            raise _no_upload()
        if expires(found) <= datetime.now(UTC):
            raise Problem(ProblemCode.UPLOAD_EXPIRED, "The upload was not finished in time. Begin a new one.")
        return found

    async def offset(self, record: UploadRecord) -> int:
        """Return how many bytes came, from the first one without a gap."""
        return max([end async for end in self._ends(record)], default=0)

    async def add(self, record: UploadRecord, offset: int, piece: Path) -> None:
        """Keep a piece. Raises Problem when another one begins there, or there are too many."""
        if len([end async for end in self._ends(record)]) >= _MAX_PIECES:
            raise Problem(ProblemCode.BAD_REQUEST, f"The upload came in {_MAX_PIECES} pieces. Send larger ones.")
        key = f"{pieces_prefix(record.owner, record.upload_id)}{offset:020d}"
        async with self._storing:
            data = await asyncio.to_thread(piece.read_bytes)
            if await self.files.create(key, data, content_type="application/octet-stream"):
                return
            if await self.files.get(key) == data:
                return  # an earlier try of this call, whose answer was lost, or somebody who sent the same
        raise Problem(ProblemCode.OFFSET_MISMATCH, "Another request sent this part of the upload already.")

    async def content(self, record: UploadRecord) -> AsyncIterator[bytes]:
        """Read the pieces, one after the other."""
        prefix = pieces_prefix(record.owner, record.upload_id)
        async for found in self.files.list(prefix):
            async for chunk in self.files.stream(found.key):
                yield chunk

    async def end(
        self, record: UploadRecord, size: int, *, job: Submitted | None = None, why: Problem | None = None
    ) -> EndedUpload:
        """Write down how an upload ended, with an image or a refusal, and remove what came of it."""
        ended = EndedUpload(
            upload_id=record.upload_id,
            owner=record.owner,
            kind=record.kind,
            expires_at=in_seconds(self.settings.upload_expires_s),
            size=size,
            job_id=job.job_id if job else None,
            image_id=job.image_id if job else None,
            lane=job.lane if job else record.details.lane,
            duplicate=job.duplicate if job else False,
            refusal=Refusal(code=why.code, detail=why.detail) if why else None,
        )
        await self._write(ended_upload_key(record.owner, record.upload_id), ended)
        await self.remove(record)
        return ended

    async def remove(self, record: UploadRecord) -> None:
        """Remove what came of an upload, and that there was one."""
        owner, upload_id = record.owner, record.upload_id
        await delete_prefix(self.files, pieces_prefix(owner, upload_id))
        await self.files.delete(staged_key(owner, upload_id))
        # The record last: whatever is left of an upload can be removed by its id.
        await self.files.delete(upload_key(owner, upload_id))
        await delete_prefix(self.files, finishing_prefix(owner, upload_id))

    async def forget(self, ended: EndedUpload) -> None:
        """Forget how an upload ended."""
        await self.files.delete(ended_upload_key(ended.owner, ended.upload_id))

    async def _ends(self, record: UploadRecord) -> AsyncIterator[int]:
        """Walk the ends of the pieces as long as there is no gap."""
        prefix, end = pieces_prefix(record.owner, record.upload_id), 0
        async for found in self.files.list(prefix):
            if found.key != f"{prefix}{end:020d}":
                return
            end += found.size
            yield end

    async def _write(self, key: str, value: Value) -> None:
        await self.files.put(key, value.model_dump_json().encode(), content_type=_JSON)

    async def _read(self, key: str, kind: type[V]) -> V | None:
        try:
            return kind.model_validate_json(await self.files.get(key, limit=_RECORD_BYTES))
        except ObjectMissing:
            return None
        except ValidationError as error:
            raise DependencyUnavailable(f"{key} cannot be read: {error.error_count()} errors") from error


def _no_upload() -> Problem:
    return Problem(ProblemCode.NOT_FOUND, "There is no upload of that id.")
