"""Duplicates: finds an owner's existing images of the same bytes, never those of another owner.

References to the original list the images of the bytes; receipts and tombstones show which of these are accepted and
not deleted, so the ingest app needs no read model. Only the read model has an image's final state: without it an image
is reusable once it has stored objects, which a rejected image never has.

A receipt alone is no proof, because it is removed if Kafka does not confirm the event. An image is therefore reusable
when an agent has reported on it, or this process accepted it. Concurrent uploads of the same bytes may both become
images, even with `on_duplicate=reuse`; an Idempotency-Key prevents that.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import Request

from gateway.access.dependencies import Caller
from gateway.access.identity import Scope
from gateway.access.permissions import requires
from gateway.access.routes import Routes
from gateway.http.problems import Problem, documented
from gateway.http.request_context import base_url
from gateway.settings import GatewaySettings
from schemas.http.batches import KnownImage
from schemas.http.problems import ProblemCode
from schemas.stored.receipts import Receipt, ReceiptKind
from schemas.values import ID_PATTERN, SHA256_PATTERN, ImageState, Lane, Owner, job_id_of
from streams.concurrency.timeouts import bounded
from streams.object_store.keys import image_prefix
from streams.object_store.original_references import claim_prefix
from streams.object_store.protocol import FileStore
from streams.object_store.receipts import generation_of, job_of, read_receipt, receipt_keys
from streams.object_store.tombstones import Tombstones
from streams.read_model.protocol import ReadModel
from streams.read_model.records import ImageRecord

_CANDIDATES = 20  # images of the same bytes to check, newest first
_ID = re.compile(ID_PATTERN)
_SHA256 = re.compile(SHA256_PATTERN)
_UNUSABLE = {ImageState.REJECTED, ImageState.FAILED, ImageState.DELETED}


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An existing image of these bytes that is not deleted."""

    image_id: str
    job_id: str
    lane: Lane
    state: ImageState | None  # None: this process has no read model
    certain: bool  # known to be accepted; without a read model also known not to be rejected

    @property
    def usable(self) -> bool:
        """Whether `on_duplicate=reuse` may return this image."""
        return self.certain and self.state not in _UNUSABLE


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Finds images of the same bytes. Methods raise DependencyUnavailable or TimeoutError."""

    settings: GatewaySettings
    files: FileStore
    read_model: ReadModel | None = None
    accepted_here: Callable[[str], bool] = lambda image_id: False

    def routes(self) -> Routes:
        """Return the routes."""
        routes = Routes("/api/v1/images", tags=["ingest"])
        problems = documented(ProblemCode.INVALID_DIGEST, ProblemCode.NOT_FOUND, ProblemCode.DEPENDENCY_UNAVAILABLE)
        summary = "Find your image of certain bytes"
        for method in ("GET", "HEAD"):
            routes.add_api_route(
                "/by-digest/{sha256}",
                self.by_digest,
                methods=[method],
                operation_id=f"{method.lower()}_image_by_digest",
                dependencies=[requires(Scope.READ)],
                summary=summary,
                response_model_exclude_none=True,
                responses=problems,
            )
        return routes

    async def by_digest(self, sha256: str, request: Request, owner: Caller) -> KnownImage:
        """Return your newest image whose original has this SHA-256 and that is not deleted; 404 without one."""
        if not _SHA256.fullmatch(sha256.lower()):
            raise Problem(ProblemCode.INVALID_DIGEST, "A SHA-256 must have 64 hexadecimal digits.")
        found = await self.newest(owner, sha256.lower())
        if found is None:
            raise Problem(ProblemCode.NOT_FOUND, "You have no image of these bytes.")
        status_url = f"{base_url(request, self.settings)}/api/v1/images/jobs/{found.job_id}"
        return KnownImage(
            image_id=found.image_id,
            job_id=found.job_id,
            sha256=sha256.lower(),
            status=found.state,
            status_url=status_url,
            result_url=f"{status_url}/result",
        )

    async def newest(self, owner: Owner, sha256: str, *, usable: bool = False) -> Duplicate | None:
        """Return the owner's newest image of these bytes; with `usable` only one that may be reused."""
        return await bounded(self._newest(owner, sha256, usable), self.settings.storage_timeout_s)

    async def _newest(self, owner: Owner, sha256: str, usable: bool) -> Duplicate | None:
        recent: deque[str] = deque(maxlen=_CANDIDATES)
        async for info in self.files.list(claim_prefix(owner, sha256)):
            recent.append(info.key.rpartition("/")[2])
        for image_id in reversed(recent):
            found = await self._load(image_id, owner, sha256) if _ID.fullmatch(image_id) else None
            if found is not None and (found.usable or not usable):
                return found
        return None

    async def _load(self, image_id: str, owner: Owner, sha256: str) -> Duplicate | None:
        """Return an image that references these bytes, if it is accepted, not deleted, and has them as its original."""
        if await Tombstones(self.files).get(image_id) is not None:
            return None
        receipt = await self._newest_receipt(image_id)
        record = await self.read_model.get(image_id) if self.read_model is not None else None
        if record is None and receipt is None:
            return None  # not accepted (yet)
        if not _is_of(record, owner, sha256) or not _is_of(receipt, owner, sha256):
            return None
        generation = max(known.generation for known in (record, receipt) if known is not None)
        state: ImageState | None = None
        if self.read_model is not None:
            current = record is not None and record.generation == generation
            state = record.state if record is not None and current else ImageState.PROCESSING
        return Duplicate(
            image_id=image_id,
            job_id=job_id_of(image_id, generation),
            lane=receipt.lane if receipt is not None else Lane.INTERACTIVE,
            state=state,
            certain=await self._is_certain(image_id, record),
        )

    async def _newest_receipt(self, image_id: str) -> Receipt | None:
        keys = [key async for key in receipt_keys(self.files, image_id)]
        return await read_receipt(self.files, job_of(max(keys, key=generation_of))) if keys else None

    async def _is_certain(self, image_id: str, record: ImageRecord | None) -> bool:
        if self.read_model is not None:
            return record is not None or self.accepted_here(image_id)
        async for _ in self.files.list(image_prefix(image_id)):
            return True
        return False


def _is_of(known: ImageRecord | Receipt | None, owner: Owner, sha256: str) -> bool:
    """Return whether a record or receipt, if any, has this owner and these bytes, and is not deleted."""
    if known is None:
        return True
    if known.owner != owner or (known.original is not None and known.original.sha256 != sha256):
        return False  # masters are referenced like originals
    if isinstance(known, ImageRecord):
        return not known.deleted
    return known.kind is not ReceiptKind.DELETE
