"""Duplicates: whether an owner has handed in certain bytes before. Never tells of anybody else's.

The claims on the bytes say which images stand on them, receipts and erasures which of these are to be spoken of; so the
ingest app can answer alone. How an image ended only the read model knows: without it an image is good for reuse once
something was stored of it, for then it was not refused.

A receipt alone promises nothing, for it is taken back if Kafka does not confirm. So an image stands for another upload
when an agent has reported of it, or this very process accepted it. Two uploads of the same bytes at the same time may
both become images, also with `on_duplicate=reuse`: neither is accepted yet when the other looks. Whoever must not have
that sends an Idempotency-Key.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from fastapi import APIRouter, Request

from gateway.access.dependencies import Caller
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

_CANDIDATES = 20  # images of the same bytes that are looked at, newest first
_ID = re.compile(ID_PATTERN)
_SHA256 = re.compile(SHA256_PATTERN)
_ENDED_BADLY = {ImageState.REJECTED, ImageState.FAILED, ImageState.DELETED}


@dataclass(frozen=True, slots=True)
class Duplicate:
    """An image that was made of these bytes and is not deleted."""

    image_id: str
    job_id: str
    lane: Lane
    state: ImageState | None  # None: there is no read model here to ask
    certain: bool  # whether it was accepted for sure, and not refused as far as is known

    @property
    def usable(self) -> bool:
        """Whether it may stand for another upload of its bytes."""
        return self.certain and self.state not in _ENDED_BADLY


@dataclass(frozen=True, slots=True)
class Duplicates:
    """Looks for images of the same bytes. Calls raise DependencyUnavailable or TimeoutError."""

    settings: GatewaySettings
    files: FileStore
    read_model: ReadModel | None = None
    accepted_here: Callable[[str], bool] = lambda image_id: False

    def routes(self) -> APIRouter:
        """Return the routes."""
        router = APIRouter(prefix="/api/v1/images", tags=["ingest"])
        refusals = documented(ProblemCode.INVALID_DIGEST, ProblemCode.NOT_FOUND, ProblemCode.DEPENDENCY_UNAVAILABLE)
        summary = "Whether you have handed in certain bytes before"
        for method in ("GET", "HEAD"):
            router.add_api_route(
                "/by-digest/{sha256}",
                self.by_digest,
                methods=[method],
                operation_id=f"{method.lower()}_image_by_digest",
                summary=summary,
                response_model_exclude_none=True,
                responses=refusals,
            )
        return router

    async def by_digest(self, sha256: str, request: Request, owner: Caller) -> KnownImage:
        """The newest of your images made of the bytes with this SHA-256, if it is not deleted; 404 if there is none."""
        if not _SHA256.fullmatch(sha256.lower()):
            raise Problem(ProblemCode.INVALID_DIGEST, "A SHA-256 has 64 hexadecimal digits.")
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
        """Return the owner's newest image of these bytes, with `usable` one that may stand for another upload."""
        return await bounded(self._newest(owner, sha256, usable), self.settings.storage_timeout_s)

    async def _newest(self, owner: Owner, sha256: str, usable: bool) -> Duplicate | None:
        recent: deque[str] = deque(maxlen=_CANDIDATES)
        async for info in self.files.list(claim_prefix(owner, sha256)):
            recent.append(info.key.rpartition("/")[2])
        for image_id in reversed(recent):
            found = await self._look(image_id, owner, sha256) if _ID.fullmatch(image_id) else None
            if found is not None and (found.usable or not usable):
                return found
        return None

    async def _look(self, image_id: str, owner: Owner, sha256: str) -> Duplicate | None:
        """Return an image that claims these bytes, if it was accepted, has them as its original, and is not deleted."""
        if await Tombstones(self.files).get(image_id) is not None:
            return None
        receipt = await self._newest_receipt(image_id)
        record = await self.read_model.get(image_id) if self.read_model is not None else None
        if record is None and receipt is None:
            return None  # not accepted, or not yet
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
    """Say whether nothing that is known of an image speaks against its being the owner's, of these bytes, and alive."""
    if known is None:
        return True
    if known.owner != owner or (known.original is not None and known.original.sha256 != sha256):
        return False  # a master is claimed as an original is
    if isinstance(known, ImageRecord):
        return not known.deleted
    return known.kind is not ReceiptKind.DELETE
