"""State of resumable and direct uploads, kept in the object store: records and received pieces.

Any gateway can continue an upload; a crash loses one piece at most. Pieces are created atomically and never
overwritten: of two concurrent requests for the same part, one is rejected.
"""

from __future__ import annotations

import asyncio
import re
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakValueDictionary

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
_RECORD_BYTES = 1 << 20  # read limit, far above the size of any record
_MAX_PIECES = 10_000  # per upload: each piece is an object, even one of a few bytes
_CONCURRENT_WRITES = 4  # pieces in memory at once, of all requests
_CACHED = 10_000  # uploads whose received pieces are known without a full listing
_ID = re.compile(ID_PATTERN)

V = TypeVar("V", bound=Value)


class UploadKind(StrEnum):
    """How the client sends the bytes."""

    RESUMABLE = "resumable"
    DIRECT = "direct"


class UploadRecord(Value):
    """An unfinished upload."""

    upload_id: str = Field(pattern=ID_PATTERN)
    owner: Owner
    kind: UploadKind
    image_id: str = Field(pattern=ID_PATTERN, description="of the image this upload will become, at most one")
    expires_at: str
    size: int | None = Field(None, description="bytes; empty = not declared yet")
    sha256: str | None = Field(None, description="declared by the client, if at all")
    told: str | None = Field(None, description="Upload-Metadata as the client sent it")
    filename: str | None = None
    details: Details = Field(default_factory=Details)


class Refusal(Value):
    """Why an upload was rejected."""

    code: ProblemCode
    detail: str


class EndedUpload(Value):
    """The result of an upload. Contains nothing of the image, which may be deleted at any time."""

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
    """Return when an upload expires."""
    return datetime.fromisoformat(record.expires_at)


def in_seconds(seconds: float) -> str:
    """Return the time `seconds` from now, RFC 3339."""
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat(timespec="seconds").replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class _Received:
    """The contiguous pieces of an upload, from the first byte."""

    pieces: int = 0
    last: int = 0  # offset of the last piece
    end: int = 0  # bytes

    def plus(self, size: int) -> _Received:
        return _Received(self.pieces + 1, self.end, self.end + size)


@dataclass(frozen=True, slots=True)
class Uploads:
    """Resumable and direct uploads in the object store. Methods raise DependencyUnavailable or TimeoutError."""

    settings: GatewaySettings
    files: FileStore
    quotas: Quotas = field(default_factory=Quotas)
    _writes: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_CONCURRENT_WRITES))
    _beginning: WeakValueDictionary[str, asyncio.Lock] = field(default_factory=WeakValueDictionary)  # by owner
    _known: OrderedDict[str, _Received] = field(default_factory=OrderedDict)  # by upload id

    def new(self, owner: Owner, kind: UploadKind, **fields: Any) -> UploadRecord:
        """Return the record of a new upload. Writes nothing."""
        return UploadRecord(
            upload_id=new_image_id(),
            owner=owner,
            kind=kind,
            image_id=new_image_id(),
            expires_at=in_seconds(self.settings.upload_expires_s),
            **fields,
        )

    async def begin(self, record: UploadRecord) -> None:
        """Store the record of a new upload. Raises Problem: too many unfinished uploads, or quota exceeded.

        An owner's uploads begin one after the other in this process. Another gateway may begin some at the same time:
        so they are counted again with the record, which is removed if there is no room for it.
        """
        await self.quotas.check(record.owner, size=record.size or 0)
        most = self.settings.max_unfinished_uploads
        async with self._beginning.setdefault(record.owner, asyncio.Lock()):
            if await self._count_to(record.owner, most) == most:
                raise self._too_many()
            await self.save(record)
            if await self._count_to(record.owner, most + 1) > most:
                await self.files.delete(upload_key(record.owner, record.upload_id))
                raise self._too_many()

    async def _count_to(self, owner: Owner, most: int) -> int:
        """Return the number of an owner's unfinished uploads, `most` if there are more."""
        count = 0
        async for _ in self.files.list(uploads_prefix(owner)):
            count += 1
            if count == most:
                break
        return count

    def _too_many(self) -> Problem:
        most = self.settings.max_unfinished_uploads
        detail = f"The limit of {most} unfinished uploads is reached. Complete or delete one first."
        return Problem(ProblemCode.TOO_MANY_UPLOADS, detail, headers={"Retry-After": "60"})

    async def save(self, record: UploadRecord) -> None:
        """Store the record of an upload."""
        await self._write(upload_key(record.owner, record.upload_id), record)

    async def find(self, owner: Owner, upload_id: str) -> UploadRecord | EndedUpload:
        """Return an upload of this owner. Raises Problem when there is none (404) or it has expired (410)."""
        if not _ID.fullmatch(upload_id):
            raise _no_upload()
        found: UploadRecord | EndedUpload | None = await self._read(ended_upload_key(owner, upload_id), EndedUpload)
        found = found or await self._read(upload_key(owner, upload_id), UploadRecord)
        if found is None:
            raise _no_upload()
        if expires(found) <= datetime.now(UTC):
            raise Problem(ProblemCode.UPLOAD_EXPIRED, "The upload has expired. Create a new one.")
        return found

    async def offset(self, record: UploadRecord) -> int:
        """Return the number of contiguous bytes received, from the first one."""
        return (await self._received(record)).end

    async def add(self, record: UploadRecord, offset: int, piece: Path) -> None:
        """Store a piece. Raises Problem when a different one exists at this offset, or there are too many."""
        received = self._known.get(record.upload_id)
        if received is None or received.end != offset:
            received = await self._received(record)
        if received.pieces >= _MAX_PIECES:
            detail = f"The limit of {_MAX_PIECES} parts per upload is reached. Create a new upload with larger parts."
            raise Problem(ProblemCode.BAD_REQUEST, detail)
        key = f"{pieces_prefix(record.owner, record.upload_id)}{offset:020d}"
        async with self._writes:
            data = await asyncio.to_thread(piece.read_bytes)
            if await self.files.create(key, data, content_type="application/octet-stream"):
                if received.end == offset:
                    self._remember(record.upload_id, received.plus(len(data)))
                return
            if await self.files.get(key) == data:
                return  # an earlier attempt whose response was lost, or another request with the same bytes
        raise Problem(ProblemCode.OFFSET_MISMATCH, "Another request has already stored this part of the upload.")

    async def content(self, record: UploadRecord) -> AsyncIterator[bytes]:
        """Yield the bytes of all pieces, in order."""
        prefix = pieces_prefix(record.owner, record.upload_id)
        async for found in self.files.list(prefix):
            async for chunk in self.files.stream(found.key):
                yield chunk

    async def end(
        self, record: UploadRecord, size: int, *, job: Submitted | None = None, why: Problem | None = None
    ) -> EndedUpload:
        """Store the result of an upload, a job or a refusal, and remove its pieces."""
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
        """Remove the pieces and the record of an upload."""
        owner, upload_id = record.owner, record.upload_id
        self._known.pop(upload_id, None)
        await delete_prefix(self.files, pieces_prefix(owner, upload_id))
        await self.files.delete(staged_key(owner, upload_id))
        # The record goes after the bytes: a failed removal can be repeated by the upload's id.
        await self.files.delete(upload_key(owner, upload_id))
        await delete_prefix(self.files, finishing_prefix(owner, upload_id))

    async def forget(self, ended: EndedUpload) -> None:
        """Remove the result of an upload."""
        await self.files.delete(ended_upload_key(ended.owner, ended.upload_id))

    async def _received(self, record: UploadRecord) -> _Received:
        """Return the pieces received, up to the first gap.

        The listing starts at the last piece known to this gateway: pieces are never overwritten, and only removed
        together. Without it, a listing for each part would make an upload of many parts quadratic.
        """
        known = self._known.get(record.upload_id)
        found = await self._listed(record, known) if known is not None else None
        received = found or await self._listed(record, None) or _Received()
        self._remember(record.upload_id, received)
        return received

    async def _listed(self, record: UploadRecord, known: _Received | None) -> _Received | None:
        """List the pieces, from the last known one; None without any, or if the last known one is missing."""
        prefix = pieces_prefix(record.owner, record.upload_id)
        received = _Received() if known is None else _Received(known.pieces - 1, known.last, known.last)
        after = f"{prefix}{received.end - 1:020d}" if received.end else None
        first = True
        async for found in self.files.list(prefix, after=after):
            if found.key != f"{prefix}{received.end:020d}":
                break
            received, first = received.plus(found.size), False
        return None if first else received

    def _remember(self, upload_id: str, received: _Received) -> None:
        if not received.pieces:
            return
        self._known[upload_id] = received
        self._known.move_to_end(upload_id)
        if len(self._known) > _CACHED:
            self._known.popitem(last=False)

    async def _write(self, key: str, value: Value) -> None:
        await self.files.put(key, value.model_dump_json().encode(), content_type=_JSON)

    async def _read(self, key: str, kind: type[V]) -> V | None:
        try:
            return kind.model_validate_json(await self.files.get(key, limit=_RECORD_BYTES))
        except ObjectMissing:
            return None
        except ValidationError as error:
            raise DependencyUnavailable(f"{key} is not valid: {error.error_count()} errors") from error


def _no_upload() -> Problem:
    return Problem(ProblemCode.NOT_FOUND, "No upload has this id.")
